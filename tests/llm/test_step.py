"""Sampling on the device, in PyTorch: the same tokens stay as on the host, and each is drawn as often as it should."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from etcuda import llm
from etcuda.llm.sampling import SamplingOptions, filtered
from etcuda.llm.step import draw
from tests.llm.architectures import greedy, prompt
from tests.llm.conftest import Exported
from tests.llm.test_sampling import logits

_ALL = -1


def drawn(values: Tensor, options: SamplingOptions, offset: int = 0, allowed: list[int] | None = None) -> int:
    words = torch.full((-(-len(values) // 32),), _ALL, dtype=torch.int32)
    if allowed is not None:
        words.zero_()
        for token in allowed:
            # The highest bit is the sign.
            words[token // 32] |= (1 << token % 32) - (1 << 32 if token % 32 == 31 else 0)
    settings = torch.tensor([options.temperature, options.top_p, options.min_p])
    state = torch.tensor([options.seed, offset])
    return int(draw(values, settings, torch.tensor([options.top_k]), state, words))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 3.0, "top_k": 5},
        {"temperature": 2.0, "top_p": 0.5},
        {"temperature": 2.0, "min_p": 0.3},
        {"temperature": 4.0, "top_k": 12, "top_p": 0.8, "min_p": 0.1},
        {"temperature": 1.0, "top_p": 1e-6},
    ],
    ids=str,
)
def test_frequencies_are_the_hosts_probabilities(options: dict[str, float]) -> None:
    chosen = SamplingOptions(**options, seed=5)
    values = logits(size=37)
    order, probabilities = filtered(values.astype(np.float64), chosen)
    expected = np.zeros(len(values))
    expected[order] = probabilities
    count = 500
    got = np.bincount([drawn(torch.from_numpy(values), chosen, n) for n in range(count)], minlength=37) / count
    assert set(np.flatnonzero(got)) <= set(order.tolist())
    np.testing.assert_allclose(got, expected, atol=0.08)
    assert np.abs(got - expected).sum() < 0.3


def test_greedy_is_the_greatest_logit() -> None:
    for seed in range(20):
        values = logits(seed)
        assert drawn(torch.from_numpy(values), SamplingOptions(seed=seed)) == int(np.argmax(values))


def test_a_mask_is_kept() -> None:
    values = torch.from_numpy(logits(3))
    for allowed in ([31], [63, 64], [199], [0, 32, 95]):
        best = max(allowed, key=lambda token: float(values[token]))
        assert drawn(values, SamplingOptions(), allowed=allowed) == best
        for offset in range(10):
            warm = SamplingOptions(temperature=5.0, top_k=7, top_p=0.9)
            assert drawn(values, warm, offset, allowed) in allowed


def test_draws_depend_on_seed_and_offset_alone() -> None:
    values, options = torch.zeros(500), SamplingOptions(temperature=1.0, seed=9)
    made = [drawn(values, options, offset) for offset in range(6)]
    assert made == [drawn(values, options, offset) for offset in range(6)]
    assert len(set(made)) > 3
    assert drawn(values, SamplingOptions(temperature=1.0, seed=10)) != made[0]


def test_logits_of_minus_infinity_are_never_drawn() -> None:
    values = torch.full((64,), -torch.inf)
    values[7] = values[50] = 0.0
    options = SamplingOptions(temperature=1.0)
    assert {drawn(values, options, offset) for offset in range(30)} == {7, 50}


@pytest.mark.slow
def test_a_program_that_samples_itself(program: Callable[..., Exported]) -> None:
    exported = program("llama", device_sampling=True)
    model = llm.load(exported.path)
    assert model.program.has_step
    for length in (1, 2, 20):
        tokens = prompt(length, seed=length)
        made = model.generate(tokens, max_new_tokens=20, ignore_eos=True)
        made.text()
        assert made.tokens == greedy(exported.model, tokens, 20)
    penalty, both = SamplingOptions(repetition_penalty=1.5), []
    for model.program.has_step in (True, False):
        made = model.generate(prompt(20), penalty, max_new_tokens=20, ignore_eos=True)
        made.text()
        both.append(made.tokens)
    assert both[0] == both[1], "the device and the host penalise alike"
    assert both[0] != greedy(exported.model, prompt(20), 20)
    model.program.has_step = True
    warm = SamplingOptions(temperature=1.5, top_k=20, top_p=0.9, seed=3)
    session = model.session()
    made = session.generate(prompt(20), warm, max_new_tokens=12, ignore_eos=True)
    made.text()
    assert list(session.tokens) == [*prompt(20), *made.tokens[:-1]]
    again = session.generate([*prompt(20), *made.tokens[:5]], warm, max_new_tokens=7, ignore_eos=True)
    again.text()
    # Numbers depend on the seed and the position, so that an answer goes on as it would have.
    assert again.tokens == made.tokens[5:]
    assert again.report.reused_tokens == 24
    # The token that the call before drew is the program's.
    drawn = model.session()._session
    drawn.advance(prompt(20), lambda: False)
    first = drawn.step(prompt(20)[-1], warm)
    second = drawn.step(-1, warm)
    assert [first, second] == made.tokens[:2]

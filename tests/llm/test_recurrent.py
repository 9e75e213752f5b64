"""Models with recurrent layers: equal to transformers' own generation, and what a session may do with their state."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

import pytest
import torch

from etcuda import llm
from etcuda.errors import CheckpointError, GenerationError
from etcuda.llm import SamplingOptions
from etcuda.llm.draft import NgramDraft
from etcuda.llm.methods import constants
from etcuda.llm.model import empty_model, find_layers
from etcuda.llm.recurrent import routed
from etcuda.llm.recurrent_cache import RecurrentLayer
from tests.exhaustive import only
from tests.llm.architectures import RECURRENT, greedy, prompt, reference
from tests.llm.conftest import CHUNK, Exported
from tests.llm.test_model import run, text_model
from tests.llm.test_speculative import Oracle

Program = Callable[..., Exported]


@pytest.mark.parametrize("name", list(RECURRENT))
def test_tokens_and_chunks_are_those_of_transformers(name: str) -> None:
    model, whole = text_model(name)
    tokens = prompt(20)
    expected = greedy(whole, tokens, 44)
    assert len(set(expected)) > 3, "the model says too little to compare"
    sequence = torch.tensor([[*tokens, *expected]])
    with torch.no_grad():
        wanted = whole(sequence).logits[0, -1:]
    # What is left of another sequence does not count.
    for buffer in model.cache.recurrent.buffers():
        buffer.fill_(float("nan"))
    for sizes in ([64], [8] * 8, [3, 8, 1, 1, 7] * 3 + [4], [20] + [1] * 44):
        torch.testing.assert_close(run(model, sequence[0].tolist(), sizes), wanted, rtol=1e-4, atol=1e-4)
    logits, got = run(model, tokens, [8, 8, 4]), []
    while len(got) < 44:
        got.append(int(logits.argmax()))
        with torch.no_grad():
            logits = model(torch.tensor([got[-1:]]), torch.tensor([len(tokens) + len(got) - 1]))
    assert got == expected


def test_nobody_is_advised_to_install_what_a_program_does_not_use() -> None:
    from transformers.integrations import hub_kernels

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    hub_kernels.logger.addHandler(handler)
    try:
        # It says a thing once in a process.
        logging.Logger.warning_once.cache_clear()  # type: ignore[attr-defined]
        model = empty_model(reference("qwen3_next").config, torch.float32)
        find_layers(model, 64, 8)
        assert said == []
        hub_kernels.logger.warning("`f` is falling back to its reference PyTorch implementation")
        assert len(said) == 1
    finally:
        hub_kernels.logger.removeHandler(handler)


def test_what_layers_keep() -> None:
    model, _ = text_model("falcon_h1")
    kept = RecurrentLayer(0, channels=192, width=4, state=(6, 16, 24))
    assert model.cache.recurrent.layers[0] == kept
    assert [each.layer for each in model.cache.layers] == [0, 1]
    assert kept.nbytes(2) == 192 * 4 * 2 + 6 * 16 * 24 * 4
    named = constants(model, model.model.config, {}, 64, 8)
    assert named["get_max_rollback"] == 0
    assert "get_state_slots" not in named
    ring, _ = text_model("falcon_h1", slots=5)
    kept = dataclasses.replace(kept, slots=5)
    assert ring.cache.recurrent.layers[0] == kept
    assert kept.nbytes(2) == 192 * 8 * 2 + 5 * 6 * 16 * 24 * 4
    more = constants(ring, model.model.config, {}, 64, 8)
    assert (more["get_max_rollback"], more["get_state_slots"]) == (0, 5)
    assert more["get_cache_reads"] == named["get_cache_reads"], "a token reads and writes one state"
    assert named["get_cache_bytes"] == sum(buffer.nbytes for buffer in model.cache.buffers())


def test_functions_are_put_back() -> None:
    from transformers.models.mamba2 import modeling_mamba2

    model, _ = text_model("mamba2")
    before = modeling_mamba2.mamba2_chunk_scan

    def fail() -> None:
        with routed(model.model):
            assert modeling_mamba2.mamba2_chunk_scan is not before
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert modeling_mamba2.mamba2_chunk_scan is before


def test_a_recurrence_that_is_not_known_is_refused() -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model("falcon_mamba", vocab_size=64, hidden_size=64, num_hidden_layers=2, state_size=8)
    with pytest.raises(CheckpointError, match=r"layer 0: expected a model whose code has one of torch_chunk_gated_d"):
        find_layers(empty_model(config, torch.float32), 64, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows"),
    [("qwen3_next", 5), only(False, "falcon_h1", 0), only(False, "falcon_h1", 3), only(False, "mamba2", 2)],
)
def test_programs_for_the_host(program: Program, name: str, rows: int) -> None:
    """With ``rows`` states of each layer, also with drafts and taken back."""
    exported = program(name, verify_rows=rows)
    model = llm.load(exported.path)
    session = model.session()
    for length in (1, CHUNK + 1, 20):
        tokens = prompt(length, seed=length)
        expected = greedy(exported.model, tokens, 44)
        made = session.generate(tokens, max_new_tokens=44, ignore_eos=True)
        made.text()
        assert made.tokens == expected
        # A session that goes on reuses its state, one that is taken back begins again.
        assert made.report.reused_tokens == 0
    whole = [*tokens, *expected[:30]]
    session.generate(whole[:40], max_new_tokens=1, ignore_eos=True).text()
    fork = session.fork()
    for each, rest in ((session, whole), (fork, [*whole[:40], *whole[:5]]), (fork, [*whole[:38], 7])):
        made = each.generate(rest, max_new_tokens=8, ignore_eos=True)
        made.text()
        assert made.tokens == greedy(exported.model, rest, 8)
        assert made.report.reused_tokens == (40 if rest[:40] == whole[:40] else 0)
    if not rows:
        with pytest.raises(GenerationError, match="Export with --rollback 15"):
            fork.rollback(1)
        return
    expected = greedy(exported.model, tokens, 44)
    for wrong in (1, 3, 1000):
        drafted = session.generate(
            tokens, max_new_tokens=44, ignore_eos=True, drafter=Oracle([*tokens, *expected], wrong)
        )
        drafted.text()
        assert drafted.tokens == expected
        assert (drafted.report.accepted_tokens > 0) == (wrong > 1)
    sampled = [
        model.generate(tokens, SamplingOptions(temperature=0.9, seed=2), max_new_tokens=30, drafter=drafter)
        for drafter in (None, NgramDraft())
    ]
    assert len({made.text() for made in sampled}) == 1
    # A prompt that leaves the session's tokens a little before their end.
    session.rollback(rows - 2)
    rest = [*session.tokens[:-1], 7]
    made = session.generate(rest, max_new_tokens=2, ignore_eos=True)
    made.text()
    assert made.tokens == greedy(exported.model, rest, 2)
    assert made.report.reused_tokens == len(rest) - 1

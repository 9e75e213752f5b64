"""Sampling on the host: against transformers' own processors, and what is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from etcuda.errors import GenerationError
from etcuda.llm.sampling import Sampler, SamplingOptions, draw, filtered


def logits(seed: int = 0, size: int = 200) -> np.ndarray:
    return (3 * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 7},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 1.0, "top_p": 1e-6},
        {"temperature": 1.0, "min_p": 0.2},
        {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.05},
    ],
)
def test_probabilities_are_those_of_transformers(options: dict[str, float]) -> None:
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    warpers = LogitsProcessorList([TemperatureLogitsWarper(options["temperature"])])
    if "top_k" in options:
        warpers.append(TopKLogitsWarper(options["top_k"]))
    if "top_p" in options:
        warpers.append(TopPLogitsWarper(options["top_p"]))
    if "min_p" in options:
        warpers.append(MinPLogitsWarper(options["min_p"]))
    values = logits()
    expected = torch.softmax(warpers(torch.zeros(1, 1, dtype=torch.long), torch.from_numpy(values)[None].double()), -1)
    order, probabilities = filtered(values.astype(np.float64), SamplingOptions(**options))
    got = np.zeros(len(values))
    got[order] = probabilities
    np.testing.assert_allclose(got, expected[0].numpy(), rtol=1e-9, atol=1e-12)


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    for seed in range(20):
        values = logits(seed)
        seen = [int(np.argmax(values)), 3, 3, 199]
        processor = RepetitionPenaltyLogitsProcessor(4.0)
        expected = int(processor(torch.tensor([seen]), torch.from_numpy(values.copy())[None]).argmax())
        assert Sampler(SamplingOptions(repetition_penalty=4.0), seen).choose(values) == expected


def test_penalties_of_the_answers_tokens_and_biases() -> None:
    values = np.array([3.0, 2.5, 1.0, 0.0], dtype=np.float32)
    cases: tuple[tuple[dict[str, Any], list[int]], ...] = (
        # Tokens of the prompt do not count.
        ({}, [0, 0, 0]),
        ({"presence_penalty": 0.4}, [0, 0, 0]),
        ({"presence_penalty": 1.0}, [0, 1, 0, 0]),
        ({"frequency_penalty": 1.0}, [0, 1, 0, 1, 0, 2]),
        ({"frequency_penalty": -1.0, "logit_bias": ((3, 9.0),)}, [3, 3, 3]),
        ({"logit_bias": ((0, -100.0), (2, 1.6))}, [2, 2]),
    )
    for options, wanted in cases:
        made = SamplingOptions(**options)
        assert made.needs_host == bool(options)
        sampler = Sampler(made, seen=[0, 1, 2])
        assert [sampler.choose(values) for _ in wanted] == wanted
    with pytest.raises(GenerationError, match=r"logit_bias: expected tokens from 0 to 3, got 4"):
        Sampler(SamplingOptions(logit_bias=((4, 1.0),))).choose(values)


def test_frequencies_are_the_probabilities() -> None:
    values = np.log(np.array([0.5, 0.25, 0.125, 0.125], dtype=np.float32))
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=11))
    drawn = np.bincount([sampler.choose(values) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(drawn, [0.5, 0.25, 0.125, 0.125], atol=0.03)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"top_k": 7}, {"top_k": 5000}, {"top_p": 0.60004}, {"top_p": 1e-6}, {"top_p": 0.99904}, {"min_p": 0.2},
        {"top_k": 400, "top_p": 0.9004, "min_p": 0.001},
    ],
)  # fmt: skip
@pytest.mark.parametrize("width", [0.0, 0.05, 3.0], ids=["equal", "flat", "peaked"])
def test_a_draw_is_that_of_all_tokens_in_order(options: dict[str, float], width: float) -> None:
    """However many are put in order: a few of peaked logits, all of flat ones, and of equal ones the first."""
    made, chosen = np.random.default_rng(5), SamplingOptions(temperature=1.0, **options)
    values = np.round(width * made.standard_normal(6000), 2)
    order, probabilities = filtered(values, chosen)
    cumulative = np.cumsum(probabilities)
    for uniform in (0.0, 1 - 2.0**-53, *made.random(40)):
        place = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
        assert draw(values, chosen, uniform) == order[min(place, len(order) - 1)]


def test_draws_do_not_change_between_releases() -> None:
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=1))
    assert [sampler.choose(np.zeros(1000, dtype=np.float32)) for _ in range(4)] == [303, 848, 156, 31]


def test_equal_logits_are_ordered_by_number() -> None:
    order, _ = filtered(np.array([1.0, 2.0, 2.0, 1.0]), SamplingOptions(temperature=1.0, top_k=3))
    assert order.tolist() == [1, 2, 0]
    assert Sampler(SamplingOptions()).choose(np.array([1.0, 2.0, 2.0], dtype=np.float32)) == 1


def test_nan_is_refused() -> None:
    with pytest.raises(GenerationError, match=r"logits: expected numbers, got NaN"):
        Sampler(SamplingOptions()).choose(np.array([0.0, np.nan], dtype=np.float32))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("repetition_penalty", 0.0),
        ("temperature", -1.0),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("seed", -1),
    ],
)
def test_values_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(GenerationError, match=rf"{option}: expected .*, got {value}"):
        SamplingOptions(**{option: value})

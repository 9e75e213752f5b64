"""Distributions against what they should be. Seeds are fixed; a right generator fails for 1 seed in 10,000."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from etcuda import random

COUNT = 40000
STATE = random.make_state(20261130)
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


# Each as a function of dtype, and its cumulative distribution.
CONTINUOUS: dict[str, tuple[Callable[[torch.dtype], Tensor], Callable[[Tensor], Tensor]]] = {
    "uniform": (lambda d: random.uniform(STATE, [COUNT], dtype=d), lambda x: x),
    "uniform of a range": (lambda d: random.uniform(STATE, [COUNT], -3, 1.5, d, 1), lambda x: (x + 3) / 4.5),
    "normal": (lambda d: random.normal(STATE, [COUNT], dtype=d, draw=2), normal_cdf),
    "normal of mean and std": (lambda d: random.normal(STATE, [COUNT], -1, 3, d, 3), lambda x: normal_cdf((x + 1) / 3)),
    "exponential": (lambda d: random.exponential(STATE, [COUNT], 2, d, 4), lambda x: 1 - torch.exp(-2 * x)),
    "log_normal": (
        lambda d: random.log_normal(STATE, [COUNT], 0.5, 0.7, d, 5), lambda x: normal_cdf((x.log() - 0.5) / 0.7),
    ),
    "cauchy": (lambda d: random.cauchy(STATE, [COUNT], 1, 2, d, 6), lambda x: 0.5 + torch.atan((x - 1) / 2) / math.pi),
}  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", CONTINUOUS)
def test_kolmogorov_smirnov(name: str, dtype: torch.dtype) -> None:
    make, cdf = CONTINUOUS[name]
    made = make(dtype)
    assert made.dtype == dtype
    # Half precision has steps of up to 1/256 near 1.
    slack = {torch.float16: 1e-3, torch.bfloat16: 5e-3}.get(dtype, 0.0)
    steps = torch.arange(COUNT, dtype=torch.float64) / COUNT
    distance = (cdf(made.double().sort()[0]) - steps).abs().max()
    assert distance < 2.23 / math.sqrt(COUNT) + slack


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_moments_of_normal(dtype: torch.dtype) -> None:
    x = random.normal(STATE, [4, COUNT // 4], dtype=dtype, draw=7).double()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(x.pow(power).mean() - moment) < 4 * math.sqrt(variance / COUNT) + 1e-3
    assert (x[0] * x[1]).mean().abs() < 4 / math.sqrt(COUNT / 4)


def chi_square(counts: Tensor, p: Tensor) -> float:
    """Statistic in standard deviations from its mean."""
    expected = p / p.sum() * counts.sum()
    kept = expected > 0
    assert int(counts[~kept].sum()) == 0
    statistic = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    freedom = int(kept.sum()) - 1
    return float((statistic - freedom) / math.sqrt(2 * freedom))


P = torch.tensor([0.5, 0.0, 3.0, 1.0, 0.25, 2.0])
DISCRETE: dict[str, tuple[Callable[[], Tensor], Tensor]] = {
    "randint": (lambda: random.randint(STATE, 10, 27, [COUNT]) - 10, torch.ones(17)),
    "low bits of a wide randint": (lambda: random.randint(STATE, -(2**60), 2**60, [COUNT]) & 15, torch.ones(16)),
    "bernoulli": (lambda: random.bernoulli(STATE, [COUNT], 0.3, torch.int64), torch.tensor([0.7, 0.3])),
    "bernoulli of a tensor": (
        lambda: random.bernoulli(STATE, [COUNT], torch.full([COUNT], 0.01), torch.int64), torch.tensor([0.99, 0.01]),
    ),
    "geometric": (
        lambda: random.geometric(STATE, [COUNT], 0.4, torch.int64).clamp(max=9) - 1,
        torch.tensor([0.4 * 0.6**k for k in range(8)] + [0.6**8]),
    ),
    "multinomial": (lambda: random.multinomial(STATE, P.expand(COUNT, 6), 1).flatten(), P),
    "multinomial with replacement": (lambda: random.multinomial(STATE, P, COUNT, True), P),
    "multinomial without": (lambda: random.multinomial(STATE, P.expand(COUNT, 6), 2)[:, 0], P),
    "a wide multinomial": (
        lambda: random.multinomial(STATE, torch.ones(COUNT // 16, 4096), 1).flatten() // 64, torch.ones(64),
    ),
    "randperm": (lambda: torch.stack([random.randperm(STATE, 5, draw=k) for k in range(2000)])[:, 3], torch.ones(5)),
}  # fmt: skip


@pytest.mark.parametrize("name", DISCRETE)
def test_chi_square(name: str) -> None:
    make, p = DISCRETE[name]
    made = make()
    assert made.dtype == torch.int64
    assert -4 < chi_square(torch.bincount(made, minlength=len(p)).double(), p.double()) < 4.5


def test_second_of_a_sample_without_replacement() -> None:
    pairs = random.multinomial(STATE, P.expand(COUNT, 6), 2)
    assert bool((pairs[:, 0] != pairs[:, 1]).all())
    p = P / P.sum()
    second = (p / (1 - p)) @ (p.expand(6, 6) * (1 - torch.eye(6)))
    assert -4 < chi_square(torch.bincount(pairs[:, 1], minlength=6).double(), second.double()) < 4.5


def test_bounds() -> None:
    for dtype in FLOATS:
        made = random.uniform(STATE, [COUNT], dtype=dtype)
        assert 0 <= float(made.min()) < 1e-3
        assert 0.99 < float(made.max()) < 1
    assert bool((random.uniform(STATE, [COUNT], 1, 1 + 2**-22) < 1 + 2**-22).all())
    assert bool((random.exponential(STATE, [COUNT]) > 0).all())
    assert bool((random.bernoulli(STATE, [COUNT], 1.0) == 1).all())
    assert bool((random.bernoulli(STATE, [COUNT], 0.0) == 0).all())
    assert bool((random.geometric(STATE, [COUNT], 1.0) == 1).all())


def test_draws_offsets_and_seeds_are_independent() -> None:
    base = random.uniform(STATE, [COUNT]) - 0.5
    others = [random.uniform(STATE, [COUNT], draw=1), random.uniform(random.make_state(20261131), [COUNT])]
    others += [random.uniform(random.make_state(20261130, 2**32), [COUNT]), torch.roll(base + 0.5, 1)]
    for other in others:
        assert float((base * (other - 0.5)).mean().abs()) * 12 < 4 / math.sqrt(COUNT)
    # An offset further is a draw further.
    assert torch.equal(random.uniform(random.make_state(20261130, 1), [9]), random.uniform(STATE, [9], draw=1))
    # The numbers of a shape are those of its elements in order.
    assert torch.equal(random.uniform(STATE, [3, 5]).flatten(), random.uniform(STATE, [15]))


def test_randperm_is_a_permutation() -> None:
    assert random.randperm(STATE, 1000, torch.int32).sort()[0].tolist() == list(range(1000))

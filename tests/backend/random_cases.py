"""Calls of PyTorch's random operators, and the functions of ``etcuda.random`` that must yield the same numbers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from etcuda import random

SEED = 2**40 + 12
OPTIONS = {"random_seed": SEED, "progress": False}


class Draws:
    """The draws of one call, in order: ``draws(random.uniform, [3])``."""

    def __init__(self, state: Tensor) -> None:
        self.state = state
        self.numbers: Iterator[int] = itertools.count()

    def __call__(self, distribution: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return distribution(self.state, *args, **kwargs, draw=next(self.numbers))


@dataclasses.dataclass(frozen=True)
class RandomCase:
    """``call`` and ``expected`` take a float [n, 4] and probabilities [n, 4]; ``is_exact``: equal bits everywhere."""

    call: Callable[[Tensor, Tensor], Tensor]
    expected: Callable[[Draws, Tensor, Tensor], Tensor]
    is_exact: bool = False


def _empty(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


def _branch(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return x + (first if x.shape[0] > 4 else second)


R = random
CASES: dict[str, RandomCase] = {
    "rand": RandomCase(
        lambda x, p: torch.rand(x.shape[0], 3), lambda d, x, p: d(R.uniform, [x.shape[0], 3]), True
    ),
    "rand_like fp64": RandomCase(
        lambda x, p: torch.rand_like(x, dtype=torch.float64),
        lambda d, x, p: d(R.uniform, x.shape, dtype=torch.float64), True,
    ),
    "rand bf16": RandomCase(
        lambda x, p: torch.rand(7, dtype=torch.bfloat16), lambda d, x, p: d(R.uniform, [7], dtype=torch.bfloat16), True
    ),
    "uniform_": RandomCase(
        lambda x, p: _empty(x).uniform_(-1.3, 2), lambda d, x, p: d(R.uniform, x.shape, -1.3, 2), True
    ),
    "randn_like": RandomCase(lambda x, p: torch.randn_like(x) + x, lambda d, x, p: d(R.normal, x.shape) + x),
    "randn fp64": RandomCase(
        lambda x, p: torch.randn(5, dtype=torch.float64), lambda d, x, p: d(R.normal, [5], dtype=torch.float64)
    ),
    "normal_ fp16": RandomCase(
        lambda x, p: _empty(x, torch.float16).normal_(2, 0.5),
        lambda d, x, p: d(R.normal, x.shape, 2, 0.5, dtype=torch.float16),
    ),
    "normal of tensors": RandomCase(lambda x, p: torch.normal(x, p), lambda d, x, p: d(R.normal, x.shape, x, p)),
    "randint": RandomCase(
        lambda x, p: torch.randint(-3, 9, (x.shape[0], 5)), lambda d, x, p: d(R.randint, -3, 9, [x.shape[0], 5]), True
    ),
    "randint below a size": RandomCase(
        lambda x, p: torch.randint(x.shape[0], (6,)), lambda d, x, p: d(R.randint, 0, x.shape[0], [6]), True
    ),
    "randint_like wide": RandomCase(
        lambda x, p: torch.randint_like(x, 2**50, dtype=torch.int64),
        lambda d, x, p: d(R.randint, 0, 2**50, x.shape), True,
    ),
    "random_ int32": RandomCase(
        lambda x, p: _empty(x, torch.int32).random_(),
        lambda d, x, p: d(R.randint, 0, 2**31, x.shape, torch.int32), True,
    ),
    "bernoulli": RandomCase(lambda x, p: torch.bernoulli(p), lambda d, x, p: d(R.bernoulli, p.shape, p), True),
    "bernoulli_": RandomCase(
        lambda x, p: torch.empty(3, 5).bernoulli_(0.25), lambda d, x, p: d(R.bernoulli, [3, 5], 0.25), True
    ),
    "exponential_": RandomCase(
        lambda x, p: _empty(x).exponential_(2.0), lambda d, x, p: d(R.exponential, x.shape, 2.0)
    ),
    "geometric_": RandomCase(
        lambda x, p: _empty(x).geometric_(0.01) * 0 + 1, lambda d, x, p: d(R.geometric, x.shape, 0.01) * 0 + 1, True
    ),
    "uniform_ fp64": RandomCase(
        lambda x, p: _empty(x, torch.float64).uniform_(-1.3, 2),
        lambda d, x, p: d(R.uniform, x.shape, -1.3, 2, dtype=torch.float64),
    ),
    "cauchy_ and log_normal_": RandomCase(
        lambda x, p: _empty(x).cauchy_(1, 0.1) + _empty(x).log_normal_(0, 0.1),
        lambda d, x, p: d(R.cauchy, x.shape, 1, 0.1) + d(R.log_normal, x.shape, 0, 0.1),
    ),
    "multinomial": RandomCase(
        lambda x, p: torch.multinomial(p.softmax(-1), 1), lambda d, x, p: d(R.multinomial, p.softmax(-1), 1), True
    ),
    "multinomial with replacement": RandomCase(
        lambda x, p: torch.multinomial(p, 3, replacement=True), lambda d, x, p: d(R.multinomial, p, 3, True), True
    ),
    "multinomial without replacement": RandomCase(
        lambda x, p: torch.multinomial(p, 3), lambda d, x, p: d(R.multinomial, p, 3), True
    ),
    "randperm": RandomCase(lambda x, p: torch.randperm(9), lambda d, x, p: d(R.randperm, 9), True),
    "a branch": RandomCase(
        lambda x, p: torch.cond(
            x.shape[0] > 4, lambda x: x + torch.rand(4), lambda x: x + torch.randint(9, (4,)), (x,)
        ),
        lambda d, x, p: _branch(x, d(R.uniform, [4]), d(R.randint, 0, 9, [4])), True,
    ),
    "a race of exponentials": RandomCase(
        lambda x, p: torch.argmax(p.softmax(-1) / _empty(p).exponential_(1), -1),
        lambda d, x, p: torch.argmax(p.softmax(-1) / d(R.exponential, p.shape), -1), True,
    ),
    "gumbel_softmax": RandomCase(
        lambda x, p: F.gumbel_softmax(x, tau=0.7),
        lambda d, x, p: ((x - d(R.exponential, x.shape).log()) / 0.7).softmax(-1),
    ),
}  # fmt: skip


class AllDraws(nn.Module):
    """Every case, from a float and probabilities."""

    def forward(self, x: Tensor, p: Tensor) -> tuple[Tensor, ...]:
        return tuple(case.call(x, p) for case in CASES.values())


class FlatDraws(AllDraws):
    """All results in one tensor of float64, which holds every value of them."""

    def forward(self, x: Tensor, p: Tensor) -> Tensor:  # type: ignore[override]
        return torch.cat([each.double().flatten() for each in super().forward(x, p)])


class Partitions(nn.Module):
    """Draws in two partitions: a product of int64, which is left to ExecuTorch, stands between them."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = x + torch.rand(3)
        count = torch.mm((y > 0.5).to(torch.int64).unsqueeze(0), torch.ones(3, 1, dtype=torch.int64))
        return y, count, count + torch.randn(3)


def inputs(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 4, generator=generator), torch.rand(rows, 4, generator=generator) + 0.01


def programs(draws: nn.Module) -> Mapping[str, ExportedProgram]:
    """Methods that share one generator: ``draws`` of 1 to 64 rows, ``partitions`` and ``reseed``."""
    rows = ({0: Dim("rows", min=1, max=64)},) * 2
    return {
        "draws": torch.export.export(draws, inputs(5), dynamic_shapes=rows),
        "partitions": torch.export.export(Partitions(), (torch.zeros(3),)),
        "reseed": torch.export.export(random.Reseed(), (random.make_state(0),)),
    }


def expected(state: Tensor, rows: int) -> tuple[list[Tensor], Tensor]:
    """What ``draws`` returns, and the state behind it."""
    draws = Draws(state)
    results = [case.expected(draws, *inputs(rows)) for case in CASES.values()]
    return results, state + torch.tensor([0, next(draws.numbers)])


def check(results: list[Tensor], state: Tensor, rows: int) -> Tensor:
    """Compares what ``draws`` returned; returns the state behind it."""
    wanted, behind = expected(state, rows)
    for (name, case), got, want in zip(CASES.items(), results, wanted, strict=True):
        # Of log, cos and so on compilers have their own, which differ in the last bits.
        limits = {"rtol": 0, "atol": 0} if case.is_exact else tolerances(want.dtype)
        torch.testing.assert_close(got, want, **limits, msg=lambda text, at=(name, rows): f"{at}: {text}")
    return behind


def tolerances(dtype: torch.dtype) -> dict[str, float]:
    eps = torch.finfo(dtype).eps
    return {"rtol": 8 * eps, "atol": 8 * eps}

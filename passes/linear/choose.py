"""Which kernels a quantised linear layer gets, by the number of its tokens."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import torch

from etcuda.kernels.common.device import Device
from etcuda.kernels.linear.choose.configs import MatvecConfig
from etcuda.kernels.linear.choose.select import (
    Choice,
    choose_matmul,
    choose_matvec,
    matmul_ranges,
    matvec_limit,
)
from etcuda.kernels.linear.problem import LinearProblem
from etcuda.passes.graph.meta import tensor_of
from etcuda.passes.linear.call import LinearCall
from etcuda.torch_private import bounds, hint


@dataclasses.dataclass(frozen=True)
class Step:
    """The kernels for a range of M, which begins where the step before ends.

    Attributes:
        most: the greatest M; ``None`` for any.
        choices: a kernel and its configuration for each of several calls.
    """

    most: int | None
    choices: tuple[Choice, ...]

    @property
    def tokens(self) -> int:
        """Tokens that the matvec kernels of the step take: ``most``, rounded up to a power of two."""
        assert self.most is not None
        return 1 << max(self.most - 1, 0).bit_length()


def num_tokens(call: LinearCall) -> int | torch.SymInt:
    """M, the product of the leading sizes of ``x``."""
    return math.prod(tensor_of(call.x).shape[:-1])


def problem(call: LinearCall) -> LinearProblem:
    """The call in numbers, M at the example inputs."""
    m, dtype = hint(num_tokens(call)), tensor_of(call.x).dtype
    return LinearProblem.of(call.format, m, call.n, call.k, call.activation_dtype, dtype)


def steps(calls: list[LinearCall], device: Device) -> list[Step]:
    """For calls of one ``x``: kernels by M, from few tokens to many; steps that cannot occur are left out.

    What a call gets for an M does not depend on the others: where they change kernels at different M, there are more
    steps. They change at the same M where their formats agree.
    """
    plans = [_plan(call, device) for call in calls]
    ends = sorted({_number(end) for plan in plans for end, _ in plan})
    found = []
    for end in ends:
        choices = tuple(next(choice for most, choice in plan if end <= _number(most)) for plan in plans)
        found.append(Step(None if end == math.inf else int(end), choices))
    return _merged(found)


def may_take_tensor_cores(call: LinearCall, device: Device) -> bool:
    """Whether M can be greater than integer dot products are taken for; N makes no difference."""
    return any(choice.kernel == "matmul" for _, choice in _plan(call, device))


def _plan(call: LinearCall, device: Device) -> list[tuple[int | None, Choice]]:
    """The choice for up to so many tokens, from few to many. Where it changes does not depend on N."""
    m = num_tokens(call)
    # Layers have the same products. The functions are named since what they return is kept: others are asked anew.
    asked = (matvec_limit, choose_matvec, matmul_ranges, choose_matmul)
    found = _plan_of(problem(call), device, *bounds(m), hint(m), asked)  # type: ignore[arg-type]  # Targets are frozen.
    return list(found)


@functools.lru_cache(1024)
def _plan_of(
    each: LinearProblem, device: Device, least: int, most: int | None, expected: int, _asked: tuple[object, ...]
) -> tuple[tuple[int | None, Choice], ...]:
    # Export takes a dynamic size to be at least 2; whatever is taken for two tokens serves one and none as well.
    limit = matvec_limit(each, device)
    found: list[tuple[int | None, Choice]] = []
    if 0 < limit >= least:
        end = limit if most is None else min(limit, most)
        found.append((end, choose_matvec(dataclasses.replace(each, m=max(end, 1)), device)))
    if not found or most is None or most > limit:
        first = max(least, limit + 1) if limit else least
        for part in matmul_ranges(each, device, first, most, expected):
            found.append((part.most, choose_matmul(each, device, tokens=part.tokens)))
    return tuple(found)


def _number(end: int | None) -> float:
    return math.inf if end is None else end


def _merged(found: list[Step]) -> list[Step]:
    """Neighbours with the same kernels are one step."""
    kept: list[Step] = []
    for step in found:
        if kept and _kernels(kept[-1]) == _kernels(step):
            kept.pop()
        kept.append(step)
    return kept


def _kernels(step: Step) -> list[Any]:
    return [(c.config, step.tokens if isinstance(c.config, MatvecConfig) else 0) for c in step.choices]

"""Which kernels a quantised linear layer gets for which numbers of rows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from etcuda.kernels.int4.configs import MatvecConfig
from etcuda.kernels.int4.problem import LinearProblem, refuse_matvec
from etcuda.kernels.int4.select import Choice, choose_matmul, choose_matvec, matvec_limit, problem_of
from etcuda.kernels.registry import Device
from etcuda.passes.base import tensor_of
from etcuda.passes.quantized_call import LinearCall
from etcuda.passes.symbols import bounds, hint

# Rows up to which reading the weight bounds a product, on GPUs with 100 to 150 operations per byte read: there a tile
# has few rows. Measured configurations decide on either side; this says only where one program changes over.
_FEW = 64


@dataclasses.dataclass(frozen=True)
class Step:
    """What is taken for up to ``most`` rows, and for more than the step before; ``None`` is any number."""

    most: int | None
    choices: tuple[Choice, ...]

    @property
    def tokens(self) -> int:
        """Rows that the matvec kernels of the step take."""
        assert self.most is not None
        return 1 << max(self.most - 1, 0).bit_length()


def rows_of(call: LinearCall) -> int | torch.SymInt:
    """M, the product of the leading sizes of ``x``."""
    return math.prod(tensor_of(call.x).shape[:-1])


def problem(call: LinearCall) -> LinearProblem:
    """The call in numbers, M at the example inputs."""
    return problem_of(
        call.bits, call.form, hint(rows_of(call)), call.n, call.k, call.activation, tensor_of(call.x).dtype
    )


def steps(calls: list[LinearCall], device: Device) -> list[Step]:
    """For calls of one ``x``: kernels by the number of rows, from few to many; those that cannot occur are left out."""
    rows = rows_of(calls[0])
    # Export takes a dynamic size to be at least 2; whatever is taken for two rows serves one and none as well.
    least, most = bounds(rows)
    problems = [problem(call) for call in calls]
    limits = [_limit(each, device) for each in problems]
    ends: list[int | None] = [*sorted({*limits, _FEW} - {0}), None]
    found: list[Step] = []
    start = 0
    for end in ends:
        first = start
        start = start if end is None else end + 1
        if (end is not None and end < least) or (most is not None and first > most):
            continue
        end = most if end is None or (most is not None and most < end) else end
        typical = min(max(hint(rows), first), end if end is not None else max(hint(rows), first))
        found.append(
            Step(end, tuple(_choose(*each, end, typical, device) for each in zip(problems, limits, strict=True)))
        )
    return _merged(found)


def _limit(each: LinearProblem, device: Device) -> int:
    """The most rows for which the matvec kernels are taken; 0 where they do not serve."""
    few = dataclasses.replace(each, m=1)
    return matvec_limit(few, device) if refuse_matvec(few) is None else 0


def _choose(each: LinearProblem, limit: int, end: int | None, typical: int, device: Device) -> Choice:
    if limit and end is not None and end <= limit:
        return choose_matvec(dataclasses.replace(each, m=max(end, 1)), device)
    return choose_matmul(dataclasses.replace(each, m=max(typical, 1)), device)


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

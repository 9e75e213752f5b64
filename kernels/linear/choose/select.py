"""Which kernel and configuration a linear layer gets: from the measured table, or from a model where there is none."""

from __future__ import annotations

import dataclasses
import math

from etcuda.kernels.common.device import Device
from etcuda.kernels.linear.choose import measured, table
from etcuda.kernels.linear.choose.configs import matmul_candidates, matvec_candidates, padded
from etcuda.kernels.linear.choose.measured import Range
from etcuda.kernels.linear.choose.table import Config, Entry, KernelName, Table
from etcuda.kernels.linear.problem import MAX_TOKENS, LinearProblem, refuse_matvec


@dataclasses.dataclass(frozen=True)
class Choice:
    """A kernel, its configuration, and where the choice comes from, in words."""

    kernel: KernelName
    config: Config
    source: str


def choose(problem: LinearProblem, device: Device, pdl: int = 1) -> Choice:
    """The kernel and configuration for a problem that some kernel serves.

    Args:
        problem: the call in numbers.
        device: the GPU.
        pdl: 1 to prefer what was measured with kernels that are launched early, as compiled programs launch them; 0
            for what was measured without.
    """
    if problem.m <= matvec_limit(problem, device):
        return choose_matvec(problem, device, pdl)
    return choose_matmul(problem, device, pdl)


def matvec_limit(problem: LinearProblem, device: Device) -> int:
    """The most tokens for which integer dot products are taken, whatever ``problem.m`` and ``problem.n`` are; 0 if
    none.

    With a table: up to the first number of tokens at which the other kernel was measured to be faster, over all shapes
    of the nearest K. Without: as many as the kernels take.
    """
    if refuse_matvec(dataclasses.replace(problem, m=1)) is not None:
        return 0
    found = table.load(problem.format_name, device.arch)
    if found is None:
        return MAX_TOKENS
    slower = (
        m for m in range(1, MAX_TOKENS + 1)
        if not measured.matvec_is_faster(found, dataclasses.replace(problem, m=padded(m)))
    )  # fmt: skip
    return next(slower, MAX_TOKENS + 1) - 1


def choose_matvec(problem: LinearProblem, device: Device, pdl: int = 1) -> Choice:
    """The configuration of the integer dot products; ``split`` of it does not depend on ``problem.n``."""
    asked = dataclasses.replace(problem, m=padded(problem.m))
    found = table.load(problem.format_name, device.arch)
    best = None if found is None else measured.best_matvec(found, asked, pdl)
    if found is None or best is None:
        return Choice("matvec", matvec_candidates(asked, device)[0], _model(device))
    return Choice("matvec", best[0], _measured(found, best[1]))


def choose_matmul(problem: LinearProblem, device: Device, pdl: int = 1, rows: tuple[int, ...] | None = None) -> Choice:
    """The configuration of the tensor-core product for ``problem.m`` tokens, or for all of ``rows`` together."""
    rows = rows or (problem.m,)
    found = table.load(problem.format_name, device.arch)
    best = None if found is None else measured.best_matmul(found, problem, rows, pdl)
    if found is None or best is None:
        model = matmul_candidates(dataclasses.replace(problem, m=rows[-1]), device)[0]
        return Choice("matmul", model, _model(device))
    return Choice("matmul", best[0], _measured(found, best[1]))


def matmul_ranges(
    problem: LinearProblem, device: Device, least: int, most: int | None, typical: int, pdl: int = 1
) -> list[Range]:
    """Numbers of rows from ``least`` to ``most`` that share a configuration of the tensor-core product.

    They depend on the weight's K and format and on the table, not on ``problem.n``. Without a table there are two: the
    model's tiles have as many rows as the call, from the least height to the greatest, and one program changes over in
    the middle, at their geometric mean.

    Args:
        problem: the call in numbers.
        device: the GPU.
        least: rows at least.
        most: rows at most; ``None`` for any number.
        typical: rows of the example inputs.
        pdl: as of ``choose``.
    """
    found = table.load(problem.format_name, device.arch)
    cut = [] if found is None else measured.ranges(found, problem, least, most, typical, pdl)
    if cut:
        return cut
    heights = [matmul_candidates(dataclasses.replace(problem, m=m), device)[0].block_m for m in (1, 1 << 20)]
    middle = math.isqrt(heights[0] * heights[1])
    if least <= middle:
        end = middle if most is None else min(middle, most)
        cut.append(Range(end, (min(max(typical, least), end),)))
    if most is None or most > middle:
        cut.append(Range(most, (max(typical, least, middle + 1),)))
    return cut


def _measured(found: Table, entry: Entry) -> str:
    shape = entry.problem
    gpu = found.environment.get("gpu", found.arch)
    return f"measured on {gpu}, nearest shape M {shape.m} N {shape.n} K {shape.k} group {shape.group_size}"


def _model(device: Device) -> str:
    return f"the model, since there is no table for {device.arch}"

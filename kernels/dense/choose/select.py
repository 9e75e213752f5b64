"""Which configuration a call gets, and whether it gets the kernel: from the measured table, or a model without one."""

from __future__ import annotations

import dataclasses
import math

from etcuda.kernels.common.device import Device
from etcuda.kernels.dense.choose import table
from etcuda.kernels.dense.choose.configs import DenseConfig, candidates, padded
from etcuda.kernels.dense.choose.table import Entry, KernelName, Table
from etcuda.kernels.dense.problem import MAX_TOKENS, DenseProblem

# Up to how many tokens the kernel is taken where nothing was measured: so many products for each number of a weight
# take less than half of the fp32 units of every GPU of compute capability 8.0 and later.
UNMEASURED_TOKENS = 4
# How far apart two shapes are: doublings of each quantity, weighted by how much they change the best configuration.
_WEIGHTS = {"m": 4.0, "k": 2.0, "rows": 1.0}


@dataclasses.dataclass(frozen=True)
class Choice:
    """A configuration, and where it comes from, in words."""

    config: DenseConfig
    source: str


def choose(problem: DenseProblem, device: Device) -> Choice:
    """The configuration for a problem that the kernel serves: the best of the nearest shape's that it can take."""
    asked = dataclasses.replace(problem, m=padded(problem.m))
    allowed = candidates(asked, device)
    measured = table.load(device.arch)
    if measured is not None:
        for entry in _nearest(measured, "matvec", asked):
            for config, _ in entry.candidates:
                if isinstance(config, DenseConfig) and config in allowed:
                    shape = entry.problem
                    gpu = measured.environment.get("gpu", measured.arch)
                    where = f"nearest shape M {shape.m} N {shape.rows} K {shape.k}"
                    return Choice(config, f"measured on {gpu}, {where}")
    return Choice(allowed[0], f"the model, since there is no table for {device.arch}")


def most_tokens(problem: DenseProblem, device: Device) -> int:
    """The most tokens for which the kernel is taken, whatever ``problem.m`` is; 0 if none.

    With a table: up to the first number of tokens at which the library was measured to be faster on the nearest shape.
    Without: ``UNMEASURED_TOKENS``.
    """
    measured = table.load(device.arch)
    if measured is None:
        return UNMEASURED_TOKENS
    slower = (
        m for m in range(1, MAX_TOKENS + 1) if not _is_faster(measured, dataclasses.replace(problem, m=padded(m)))
    )
    return next(slower, MAX_TOKENS + 1) - 1


def _is_faster(measured: Table, problem: DenseProblem) -> bool:
    ours, library = (_nearest(measured, kernel, problem) for kernel in _KERNELS)
    if not ours or not library:
        return True
    beside = next((entry for entry in library if entry.problem == ours[0].problem), None)
    return beside is None or ours[0].us <= beside.us


_KERNELS: tuple[KernelName, KernelName] = ("matvec", "library")


def _nearest(measured: Table, kernel: KernelName, problem: DenseProblem) -> list[Entry]:
    """Entries of a kernel, the nearest first."""
    return sorted(measured.of(kernel), key=lambda entry: (_distance(entry.problem, problem), -entry.pdl))


def _distance(measured: DenseProblem, asked: DenseProblem) -> float:
    pairs = {name: (getattr(measured, name), getattr(asked, name)) for name in _WEIGHTS}
    apart = sum(_WEIGHTS[name] * abs(math.log2(max(a, 1) / max(b, 1))) for name, (a, b) in pairs.items())
    return apart + (measured.gated != asked.gated) / 2

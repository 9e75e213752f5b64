"""Which kernel and configuration a linear layer gets: from the measured table, or from a model where there is none."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import torch
from torch import Tensor

from etcuda.kernels.activations.launch import quantize
from etcuda.kernels.common.device import Device, LocalDevice
from etcuda.kernels.common.memory import dense_rows
from etcuda.kernels.formats.base import GroupFormat
from etcuda.kernels.linear import launch
from etcuda.kernels.linear.check import Stored
from etcuda.kernels.linear.choose import measured, table
from etcuda.kernels.linear.choose.configs import (
    MatmulConfig,
    MatvecConfig,
    matmul_candidates,
    matvec_candidates,
    padded,
)
from etcuda.kernels.linear.choose.measured import Range
from etcuda.kernels.linear.choose.table import Config, Entry, KernelName, Table
from etcuda.kernels.linear.problem import MAX_TOKENS, LinearProblem, refuse, refuse_matvec


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
    """The most rows for which integer dot products are taken, whatever ``problem.m`` and ``problem.n`` are; 0 if none.

    With a table: up to the first number of rows at which the other kernel was measured to be faster, over all shapes of
    the nearest K. Without: as many as the kernels take.
    """
    if refuse_matvec(dataclasses.replace(problem, m=1)) is not None:
        return 0
    found = table.load(problem.bits, device.arch)
    if found is None:
        return MAX_TOKENS
    slower = (
        m for m in range(1, MAX_TOKENS + 1)
        if not measured.matvec_is_faster(found, dataclasses.replace(problem, m=padded(m)))
    )  # fmt: skip
    return next(slower, MAX_TOKENS + 1) - 1


def choose_matvec(problem: LinearProblem, device: Device, pdl: int = 1) -> Choice:
    """The configuration of the integer dot products; ``order`` of it does not depend on ``problem.n``."""
    asked = dataclasses.replace(problem, m=padded(problem.m))
    found = table.load(problem.bits, device.arch)
    best = None if found is None else measured.best_matvec(found, asked, pdl)
    if found is None or best is None:
        return Choice("matvec", matvec_candidates(asked, device)[0], _model(device))
    return Choice("matvec", best[0], _measured(found, best[1]))


def choose_matmul(problem: LinearProblem, device: Device, pdl: int = 1, rows: tuple[int, ...] | None = None) -> Choice:
    """The configuration of the tensor-core product for ``problem.m`` rows, or for all of ``rows`` together."""
    rows = rows or (problem.m,)
    found = table.load(problem.bits, device.arch)
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
    found = table.load(problem.bits, device.arch)
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


def matvec_arguments(config: MatvecConfig, tokens: int, num_sms: int, pdl: int) -> tuple[int, ...]:
    """The trailing arguments of ``int4_matvec``; of ``int4_matvec_quantized`` without the second."""
    ctas = config.ctas_per_sm * num_sms if config.resident else 0
    return (tokens, ctas, config.block_n, config.blocks, config.num_warps, config.num_stages, pdl)


def matmul_arguments(config: MatmulConfig, num_sms: int, pdl: int) -> tuple[int, ...]:
    """The trailing arguments of ``int4_matmul``."""
    ctas = config.ctas_per_sm * num_sms
    return (
        config.block_n, config.block_m, config.blocks, config.num_warps, config.num_stages, ctas,
        config.max_registers, config.warpgroups, pdl,
    )  # fmt: skip


def run_linear(
    bits: int, form: GroupFormat, n: int, k: int, x: Tensor, stored: Stored, bias: Tensor | None, activation_dtype: str
) -> Tensor:
    """A linear layer on the current GPU by what ``choose`` says; by the reference what no kernel serves."""
    rows = dense_rows(x)
    problem = problem_of(bits, form, rows.shape[0], n, k, activation_dtype, x.dtype)
    if refuse(problem) is not None:
        expected: Tensor = _reference(bits)(x, *stored, bias, form.group_size, activation_dtype)
        return expected
    device = LocalDevice.current()
    choice = _cached_choice(problem, device)
    out = run_config(bits, form, rows, stored, bias, activation_dtype, choice.config, device.num_sms, 0)
    return out.reshape(*x.shape[:-1], n)


def run_config(
    bits: int,
    form: GroupFormat,
    x: Tensor,
    stored: Stored,
    bias: Tensor | None,
    activation_dtype: str,
    config: Config,
    num_sms: int,
    pdl: int,
) -> Tensor:
    """x [M, K], dense, through a kernel and configuration that serve it; [M, N]."""
    if isinstance(config, MatmulConfig):
        return launch.matmul(
            bits, form, x, stored, bias, activation_dtype, *matmul_arguments(config, num_sms, pdl)
        )  # fmt: skip
    arguments = matvec_arguments(config, padded(x.shape[0]), num_sms, pdl)
    values = quantize(x, pdl) if config.rounded else x
    return launch.matvec(bits, form, values, stored, bias, x.dtype, *arguments)


def problem_of(
    bits: int, form: GroupFormat, m: int, n: int, k: int, activation_dtype: str, dtype: torch.dtype
) -> LinearProblem:
    """A call in numbers."""
    return LinearProblem(
        m, n, k, bits, form.group_size, form.scale_storage, form.offset, activation_dtype, dtype.itemsize
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _cached_choice(problem: LinearProblem, device: LocalDevice) -> Choice:
    return choose(problem, device, pdl=0)


def _reference(bits: int) -> Any:
    if bits == 4:
        from etcuda.kernels.linear.reference import int4_linear_reference

        return int4_linear_reference
    from etcuda.kernels.linear.reference import int8_linear_reference

    return int8_linear_reference


def _measured(found: Table, entry: Entry) -> str:
    shape = entry.problem
    gpu = found.environment.get("gpu", found.arch)
    return f"measured on {gpu}, nearest shape M {shape.m} N {shape.n} K {shape.k} group {shape.group_size}"


def _model(device: Device) -> str:
    return f"the model, since there is no table for {device.arch}"

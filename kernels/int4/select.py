"""Which kernel and configuration a linear layer gets: from the measured table, or from a model where there is none."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import torch
from torch import Tensor

from etcuda.errors import KernelArgumentError
from etcuda.kernels.groups import GroupFormat
from etcuda.kernels.int4 import launch, table
from etcuda.kernels.int4.check import Stored
from etcuda.kernels.int4.configs import MatmulConfig, MatvecConfig, matmul_candidates, matvec_candidates, padded
from etcuda.kernels.int4.problem import MAX_TOKENS, LinearProblem, refuse, refuse_matvec
from etcuda.kernels.int4.table import Config, Entry, KernelName, Table
from etcuda.kernels.registry import Device

# How far apart two shapes are: doublings of each quantity, weighted by how much they change the best configuration.
_WEIGHTS = {"m": 4.0, "k": 2.0, "n": 1.0, "group_size": 0.25}


@dataclasses.dataclass(frozen=True)
class LocalDevice:
    """The properties of the local GPU that the choice depends on."""

    arch: str
    num_sms: int
    shared_memory_per_block: int
    l2_bytes: int = 0
    memory_bandwidth: float = 1.0

    @classmethod
    @functools.cache
    def current(cls) -> LocalDevice:
        """The current device.

        Raises:
            KernelArgumentError: there is no GPU.
        """
        if not torch.cuda.is_available():
            raise KernelArgumentError("expected an NVIDIA GPU, found none. Run this where there is one.")
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        shared = int(getattr(properties, "shared_memory_per_block_optin"))  # noqa: B009  torch's stub lacks it
        arch = f"sm_{properties.major}{properties.minor}"
        return cls(arch, properties.multi_processor_count, shared, properties.L2_cache_size)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A kernel, its configuration, and where the choice comes from, in words."""

    kernel: KernelName
    config: Config
    source: str


def choose(problem: LinearProblem, device: Device, overlap: int = 1) -> Choice:
    """The kernel and configuration for a problem that some kernel serves.

    Args:
        problem: the call in numbers.
        device: the GPU.
        overlap: 1 to prefer what was measured with kernels that are launched early, as compiled programs launch them; 0
            for what was measured without.
    """
    if refuse_matvec(problem) is None and problem.m <= matvec_limit(problem, device):
        return choose_matvec(problem, device, overlap)
    return choose_matmul(problem, device, overlap)


def matvec_limit(problem: LinearProblem, device: Device) -> int:
    """The most rows for which integer dot products are taken, whatever ``problem.m`` is.

    With a table: up to the first number of rows at which the other kernel was measured to be faster on the nearest
    shape. Without: as many as the kernels take.
    """
    measured = table.load(problem.bits, device.arch)
    if measured is None:
        return MAX_TOKENS
    other = {(entry.problem, entry.overlap): entry for entry in measured.of("matmul")}
    alike = [(entry, other.get((entry.problem, entry.overlap))) for entry in measured.of("matvec")]
    pairs = [(matvec, matmul) for matvec, matmul in alike if matmul is not None]
    for m in range(1, MAX_TOKENS + 1):
        asked = dataclasses.replace(problem, m=padded(m))
        same = [pair for pair in pairs if pair[0].problem.m == padded(m)]
        if same:
            matvec, matmul = min(same, key=lambda pair: distance(pair[0].problem, asked))
            if matmul.us < matvec.us:
                return m - 1
    return MAX_TOKENS


def choose_matvec(problem: LinearProblem, device: Device, overlap: int = 1) -> Choice:
    """The configuration of the integer dot products: the nearest measured one that fits."""
    asked = dataclasses.replace(problem, m=padded(problem.m))
    measured = table.load(problem.bits, device.arch)
    # One row alone is rounded by the product itself at little cost, so that its best kernels are others.
    alike = [] if measured is None else [e for e in measured.of("matvec") if (e.problem.m == 1) == (asked.m == 1)]
    entry = nearest(alike, asked, overlap)
    if measured is None or entry is None:
        return Choice("matvec", matvec_candidates(asked, device)[0], _model(device))
    blocks = padded(problem.k // 32)
    for config, _ in entry.candidates:
        assert isinstance(config, MatvecConfig)
        if not config.rounded and problem.itemsize != 2:
            continue
        if config.resident and config.blocks != blocks:
            # The row is kept in registers: as many lanes as give each as much to keep, if there are such.
            warps = config.num_warps * blocks / config.blocks
            if warps < 1 or warps > 16:
                continue
            config = dataclasses.replace(config, blocks=blocks, num_warps=int(warps))
        return Choice("matvec", config, _measured(measured, entry))
    return Choice("matvec", matvec_candidates(asked, device)[0], _model(device))


def choose_matmul(problem: LinearProblem, device: Device, overlap: int = 1) -> Choice:
    """The configuration of the tensor-core product: the nearest measured one."""
    measured = table.load(problem.bits, device.arch)
    entry = None if measured is None else nearest(measured.of("matmul"), problem, overlap)
    if measured is None or entry is None:
        return Choice("matmul", matmul_candidates(problem, device)[0], _model(device))
    return Choice("matmul", entry.best, _measured(measured, entry))


def nearest(entries: list[Entry], problem: LinearProblem, overlap: int) -> Entry | None:
    """The entry of the nearest shape; of several the one that was launched like this, then the first."""
    return min(entries, key=lambda e: (distance(e.problem, problem), e.overlap != overlap), default=None)


def distance(measured: LinearProblem, asked: LinearProblem) -> float:
    """0 for shapes that are alike in everything that matters."""
    pairs = {name: (getattr(measured, name), getattr(asked, name)) for name in _WEIGHTS}
    return sum(_WEIGHTS[name] * abs(math.log2(max(a, 1) / max(b, 1))) for name, (a, b) in pairs.items())


def matvec_arguments(config: MatvecConfig, tokens: int, num_sms: int, overlap: int) -> tuple[int, ...]:
    """The trailing arguments of ``int4_matvec``; of ``int4_matvec_rounded`` without the second."""
    programs = config.per_sm * num_sms if config.resident else 0
    return (tokens, programs, config.block_n, config.blocks, config.num_warps, config.num_stages, overlap)


def matmul_arguments(config: MatmulConfig, num_sms: int, overlap: int) -> tuple[int, ...]:
    """The trailing arguments of ``int4_matmul``."""
    programs = config.per_sm * num_sms
    return (
        config.block_n, config.block_m, config.blocks, config.num_warps, config.num_stages, programs, overlap,
    )  # fmt: skip


def run_linear(
    bits: int, form: GroupFormat, n: int, k: int, x: Tensor, stored: Stored, bias: Tensor | None, activation: str
) -> Tensor:
    """A linear layer on the current GPU by what ``choose`` says; by the reference what no kernel serves."""
    rows = launch.rows_of(x)
    problem = problem_of(bits, form, rows.shape[0], n, k, activation, x.dtype)
    if refuse(problem) is not None:
        expected: Tensor = _reference(bits)(x, *stored, bias, form.group_size, activation)
        return expected
    device = LocalDevice.current()
    choice = _cached_choice(problem, device)
    out = run_config(bits, form, rows, stored, bias, activation, choice.config, device.num_sms, 0)
    return out.reshape(*x.shape[:-1], n)


def run_config(
    bits: int,
    form: GroupFormat,
    x: Tensor,
    stored: Stored,
    bias: Tensor | None,
    activation: str,
    config: Config,
    num_sms: int,
    overlap: int,
) -> Tensor:
    """x [M, K], dense, through a kernel and configuration that serve it; [M, N]."""
    if isinstance(config, MatmulConfig):
        return launch.matmul(
            bits, form, x, stored, bias, activation, *matmul_arguments(config, num_sms, overlap)
        )  # fmt: skip
    arguments = matvec_arguments(config, padded(x.shape[0]), num_sms, overlap)
    values = launch.quantize(x, overlap) if config.rounded else x
    return launch.matvec(bits, form, values, stored, bias, x.dtype, *arguments)


def problem_of(
    bits: int, form: GroupFormat, m: int, n: int, k: int, activation: str, dtype: torch.dtype
) -> LinearProblem:
    """A call in numbers."""
    return LinearProblem(
        m, n, k, bits, form.group_size, form.scale_storage, form.offset, activation, dtype.itemsize
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _cached_choice(problem: LinearProblem, device: LocalDevice) -> Choice:
    return choose(problem, device, overlap=0)


def _reference(bits: int) -> Any:
    if bits == 4:
        from etcuda.kernels.int4.reference import int4_linear_reference

        return int4_linear_reference
    from etcuda.kernels.int8.reference import int8_linear_reference

    return int8_linear_reference


def _measured(measured: Table, entry: Entry) -> str:
    shape = entry.problem
    gpu = measured.environment.get("gpu", measured.arch)
    return f"measured on {gpu}, nearest shape M {shape.m} N {shape.n} K {shape.k} group {shape.group_size}"


def _model(device: Device) -> str:
    return f"the model, since there is no table for {device.arch}"

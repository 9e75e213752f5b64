"""What the tuner needs to know of products with quantized weights: ``etcuda tune int4``, ``etcuda tune int8``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from etcuda.kernels.common.device import Device, LocalDevice, supports_pdl
from etcuda.kernels.common.tuning import Job, Tuning
from etcuda.kernels.formats.base import GroupFormat
from etcuda.kernels.formats.registry import WeightFormat, formats
from etcuda.kernels.formats.stored import StoredWeight
from etcuda.kernels.linear.choose import table
from etcuda.kernels.linear.choose.configs import MatmulConfig, matmul_candidates, matvec_candidates
from etcuda.kernels.linear.choose.shapes import problems
from etcuda.kernels.linear.choose.table import Config, KernelName
from etcuda.kernels.linear.problem import LinearProblem
from etcuda.kernels.linear.run import run_config

Stored = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
LinearJob = Job[KernelName, LinearProblem, Config]
_COLD_BYTES = 160 << 20
_MOST_SETS = 96
# Rows of the small weight on which a configuration is compiled and checked: all tuned sizes are multiples of 16, as it
# is, so that the compiled kernel is the same.
_CHECK_ROWS = 512
_EXPECTED_ROWS = 16384  # Of a weight, that are dequantized at a time.


def make_weight(problem: LinearProblem, rows: int) -> tuple[GroupFormat, Stored]:
    """A random weight of so many rows on the GPU."""
    weight_format = format_of(problem)
    parts: dict[str, Tensor] = {}
    for name, (shape, dtype) in weight_format.components(rows, problem.k).items():
        if dtype == torch.int8:
            parts[name] = torch.randint(-128, 128, shape, dtype=dtype, device="cuda")
        elif dtype == torch.uint8:
            low, high = (0, 256) if name == "qdata" else (4, 12)
            parts[name] = torch.randint(low, high, shape, dtype=dtype, device="cuda")
        else:
            parts[name] = torch.empty(shape, dtype=dtype, device="cuda").uniform_(0.005, 0.015)
    qdata, scale = parts["qdata"], parts["scale"]
    return weight_format, (qdata, scale, parts.get("zero"), parts.get("scale_step"), parts.get("zero_step"))


def format_of(problem: LinearProblem) -> GroupFormat:
    """The format of a problem's weight."""
    return problem.weight_format


def make_activations(problem: LinearProblem) -> Tensor:
    """Random rows [m, k] on the GPU."""
    return torch.randn(problem.m, problem.k, dtype=torch.bfloat16, device="cuda")


def call_kernel(
    problem: LinearProblem,
    config: Config,
    x: Tensor,
    weight_format: GroupFormat,
    stored: Stored,
    num_sms: int,
    pdl: int,
) -> Tensor:
    """Runs a problem by a configuration, without a bias."""
    return run_config(
        StoredWeight(weight_format, *stored), x, config, None, problem.activation_dtype, num_sms, pdl
    )  # fmt: skip


def expected(problem: LinearProblem, x: Tensor, weight_format: GroupFormat, stored: Stored) -> Tensor:
    """The product with the dequantized weight and exact activations in fp32, some rows of the weight at a time."""
    pieces = []
    for start in range(0, stored[0].shape[0], _EXPECTED_ROWS):
        parts = [None if part is None else part[start : start + _EXPECTED_ROWS] for part in stored]
        pieces.append(x.float() @ weight_format.dequantize(*parts).T)  # type: ignore[arg-type]
    return torch.cat(pieces, 1)


class LinearTuning(Tuning[KernelName, LinearProblem, Config]):
    """Products with weights of one format: bf16 activations.

    Args:
        record: of the format.
    """

    timing = "microseconds per call in a CUDA graph, weights not in the L2 cache, bf16 activations, median"

    def __init__(self, record: WeightFormat) -> None:
        self.record = record
        self.table_format = table.format_of(record.name)

    def problems(self) -> list[list[tuple[KernelName, LinearProblem]]]:
        """One group."""
        return [problems(self.record.name)]

    def candidates(self, kernel: KernelName, problem: LinearProblem, device: Device) -> Sequence[Config]:
        """Configurations worth measuring."""
        return matvec_candidates(problem, device) if kernel == "matvec" else matmul_candidates(problem, device)

    def job(self, kernel: KernelName, problem: LinearProblem, config: Config) -> LinearJob:
        """The weight's rows and the number of CTAs do not change what is compiled."""
        small = dataclasses.replace(problem, n=_CHECK_ROWS)
        if isinstance(config, MatmulConfig) and problem.m % 16 == 0:
            # A number of rows that is a multiple of 16 compiles as every other does.
            small = dataclasses.replace(small, m=16)
        return LinearJob(kernel, small, dataclasses.replace(config, ctas_per_sm=min(config.ctas_per_sm, 1)))

    def num_sets(self, problem: LinearProblem) -> int:
        """As many weights as do not fit the L2 cache."""
        return max(2, min(_MOST_SETS, math.ceil(_COLD_BYTES / problem.weight_bytes)))

    def num_calls(self, problem: LinearProblem, num_sets: int) -> int:
        """Few of long calls."""
        return max(num_sets, 2 if problem.m > 64 else 12)

    def make_inputs(self, kernel: KernelName, problem: LinearProblem, num_sets: int) -> Any:
        """Weights and activations."""
        weights = [make_weight(problem, problem.n) for _ in range(num_sets)]
        return make_activations(problem), weights

    def call(self, kernel: KernelName, problem: LinearProblem, config: Config, inputs: Any, index: int) -> Tensor:
        """The kernel on one of the weights."""
        x, weights = inputs
        weight_format, stored = weights[index]
        device = LocalDevice.current()
        return call_kernel(problem, config, x, weight_format, stored, device.num_sms, int(supports_pdl(device)))

    def expected(self, kernel: KernelName, problem: LinearProblem, inputs: Any) -> Tensor:
        """The product with exact activations."""
        x, weights = inputs
        return expected(problem, x, *weights[0])

    def describe(self, problem: LinearProblem) -> str:
        """Its sizes."""
        return f"M {problem.m} {problem.n}x{problem.k}"


TUNINGS = {record.name: LinearTuning(record) for record in formats() if record.kernels}

"""What the tuner needs to know of products with weights as they are: ``etcuda tune dense``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from etcuda.kernels.common.device import Device, LocalDevice, supports_pdl
from etcuda.kernels.common.tuning import Job, Tuning
from etcuda.kernels.dense import launch
from etcuda.kernels.dense.choose.configs import DenseConfig, LibraryConfig, candidates
from etcuda.kernels.dense.choose.table import FORMAT, Config, KernelName
from etcuda.kernels.dense.problem import DenseProblem

DenseJob = Job[KernelName, DenseProblem, Config]
_COLD_BYTES = 160 << 20
_MOST_SETS = 64
_CHECK_ROWS = 512
_EXPECTED_ROWS = 16384  # Of a weight, that are computed in double precision at a time.
# N x K of Llama 3 8B: query, key and value; output; down; the head. Then of Qwen3 0.6B.
_SHAPES = (
    (6144, 4096), (4096, 4096), (4096, 14336), (128256, 4096), (4096, 1024), (1024, 2048), (1024, 3072),
    (151936, 1024),
)  # fmt: skip
# Features of gate and up.
_GATED = ((14336, 4096), (3072, 1024))
_FEW = (2, 4, 8)


def problems() -> list[list[tuple[KernelName, DenseProblem]]]:
    """What is measured: one token, gate and up also without their activation; then more tokens."""
    found = [DenseProblem(1, *shape) for shape in _SHAPES]
    found += [DenseProblem(1, n, k, 1) for n, k in _GATED] + [DenseProblem(1, 2 * n, k) for n, k in _GATED]
    more = [DenseProblem(m, *shape) for m in _FEW for shape in ((6144, 4096), (4096, 14336), (1024, 2048))]
    more += [DenseProblem(m, *_GATED[0], 1) for m in _FEW]
    return [[(kernel, problem) for problem in group for kernel in _KERNELS] for group in (found, more)]


_KERNELS: tuple[KernelName, KernelName] = ("matvec", "library")


class DenseTuning(Tuning[KernelName, DenseProblem, Config]):
    """Products of bf16 weights, and the library's beside."""

    table_format = FORMAT
    timing = "microseconds per call in a CUDA graph, weights not in the L2 cache, bf16, median"

    def problems(self) -> list[list[tuple[KernelName, DenseProblem]]]:
        """Those of one token, and the others."""
        return problems()

    def candidates(self, kernel: KernelName, problem: DenseProblem, device: Device) -> Sequence[Config]:
        """Configurations worth measuring."""
        return [LibraryConfig(_version())] if kernel == "library" else candidates(problem, device)

    def job(self, kernel: KernelName, problem: DenseProblem, config: Config) -> DenseJob:
        """The number of rows and of CTAs does not change what is compiled."""
        if isinstance(config, DenseConfig):
            config = dataclasses.replace(config, ctas_per_sm=min(config.ctas_per_sm, 1))
        return DenseJob(kernel, dataclasses.replace(problem, n=_CHECK_ROWS), config)

    def num_sets(self, problem: DenseProblem) -> int:
        """As many weights as do not fit the L2 cache."""
        return max(2, min(_MOST_SETS, math.ceil(_COLD_BYTES / problem.weight_bytes)))

    def num_calls(self, problem: DenseProblem, num_sets: int) -> int:
        """Few of long calls."""
        return max(num_sets, 4 if problem.weight_bytes > 100 << 20 else 12)

    def make_inputs(self, kernel: KernelName, problem: DenseProblem, num_sets: int) -> tuple[Tensor, list[Tensor]]:
        """Activations and weights."""
        x = torch.randn(problem.m, problem.k, dtype=torch.bfloat16, device="cuda")
        shape = (problem.rows, problem.k)
        return x, [torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(num_sets)]

    def call(self, kernel: KernelName, problem: DenseProblem, config: Config, inputs: Any, index: int) -> Tensor:
        """The kernel, or the library and Eager's gate, on one of the weights."""
        x, weights = inputs
        if isinstance(config, LibraryConfig):
            # A gate's activation is not the library's, and is not counted.
            return functional.linear(x, weights[index])
        device = LocalDevice.current()
        how = config.launch(problem.m, device.num_sms, int(supports_pdl(device)))
        return launch.dense_matvec(x, weights[index], None, "silu" if problem.gated else "none", how)

    def expected(self, kernel: KernelName, problem: DenseProblem, inputs: Any) -> Tensor:
        """The product in double precision, some rows of the weight at a time."""
        x, weights = inputs
        pieces = weights[0].split(_EXPECTED_ROWS)
        product = torch.cat([x.double() @ piece.double().t() for piece in pieces], 1)
        if kernel == "library" or not problem.gated:
            return product
        gate, up = product.chunk(2, 1)
        return functional.silu(gate) * up

    def describe(self, problem: DenseProblem) -> str:
        """Its sizes."""
        return f"M {problem.m} {problem.rows}x{problem.k}{' gated' if problem.gated else ''}"


def _version() -> int:
    """Of CUDA, with which the library comes: 1300 for 13.0."""
    major, minor = [*str(torch.version.cuda or "0.0").split("."), "0"][:2]
    return 100 * int(major) + 10 * int(minor)


TUNING = DenseTuning()

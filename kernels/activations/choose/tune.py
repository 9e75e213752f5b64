"""What the tuner needs to know of the activation kernels: ``etcuda tune activations``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from etcuda.kernels.activations import launch
from etcuda.kernels.activations.choose.configs import ActivationConfig, gate_candidates, norm_candidates
from etcuda.kernels.activations.choose.table import FORMAT, KernelName
from etcuda.kernels.activations.problem import ActivationProblem
from etcuda.kernels.activations.reference import gate_reference, rms_norm_reference
from etcuda.kernels.common.device import Device, LocalDevice, supports_pdl
from etcuda.kernels.common.tuning import Tuning
from etcuda.kernels.formats.base import BLOCK

_EPS = 1e-6
# The kernel in front leaves activations in the L2 cache, and weights of norms are not there: so many take turns.
_SETS = 64
# Hidden and intermediate sizes of language models, and rows of decoding, of few tokens together and of a prompt.
_HIDDEN = (1024, 2048, 3072, 4096, 5376, 8192)
_INTERMEDIATE = (3072, 8192, 11008, 14336, 21504)
_ROWS = (1, 4, 8, 64, 512)


def problems() -> list[tuple[KernelName, ActivationProblem]]:
    """What is measured, in order."""
    found: list[tuple[KernelName, ActivationProblem]] = []
    for m in _ROWS:
        found += [("quantize", ActivationProblem(m, k)) for k in sorted({*_HIDDEN, *_INTERMEDIATE})]
        found += [("norm", ActivationProblem(m, k, residual=some)) for k in _HIDDEN for some in (False, True)]
        found += [("gate", ActivationProblem(m, k)) for k in _INTERMEDIATE]
    # Read for one token alone.
    found += [("plain", ActivationProblem(1, k)) for k in _INTERMEDIATE]
    return found


def make_inputs(kernel: KernelName, problem: ActivationProblem, num_sets: int) -> tuple[Tensor, Tensor]:
    """Activations, and weights [num_sets, k], on the GPU."""
    width = 2 * problem.k if kernel in ("gate", "plain") else problem.k
    x = torch.randn(problem.m, width, dtype=torch.bfloat16, device="cuda")
    return x, torch.randn(num_sets, problem.k, dtype=torch.bfloat16, device="cuda")


def call_kernel(
    kernel: KernelName, problem: ActivationProblem, config: ActivationConfig, x: Tensor, weight: Tensor
) -> tuple[Tensor, ...]:
    """Runs a problem by a configuration; returns what it computes, last q, scale and sum."""
    pdl = int(supports_pdl(LocalDevice.current()))
    if kernel == "quantize":
        return launch.quantize(x, pdl)
    if kernel in ("gate", "plain"):
        return launch.gate_quantize(x, None, "silu", False, config, pdl if kernel == "gate" else 0)
    residual = x if problem.residual else None
    return launch.rms_norm_quantize(x, residual, weight, _EPS, 0.0, True, problem.residual, False, config, pdl)


class ActivationTuning(Tuning[KernelName, ActivationProblem, ActivationConfig]):
    """Norm, gate, early and not, and quantisation alone, with which the passes compare them: bf16."""

    table_format = FORMAT
    timing = "microseconds per call in a CUDA graph, activations in the L2 cache, weights not, bf16, median"

    def problems(self) -> list[list[tuple[KernelName, ActivationProblem]]]:
        """One group."""
        return [problems()]

    def candidates(self, kernel: KernelName, problem: ActivationProblem, device: Device) -> list[ActivationConfig]:
        """Configurations worth measuring."""
        if kernel == "norm":
            return norm_candidates(problem, device)
        if kernel in ("gate", "plain"):
            return gate_candidates(problem, device)
        # It chooses by itself.
        return [ActivationConfig(1, 1)]

    def num_sets(self, problem: ActivationProblem) -> int:
        """Weights of norms."""
        return _SETS

    def num_calls(self, problem: ActivationProblem, num_sets: int) -> int:
        """One for each weight."""
        return num_sets

    def make_inputs(self, kernel: KernelName, problem: ActivationProblem, num_sets: int) -> Any:
        """Activations and weights."""
        return make_inputs(kernel, problem, num_sets)

    def call(
        self, kernel: KernelName, problem: ActivationProblem, config: ActivationConfig, inputs: Any, index: int
    ) -> tuple[Tensor, ...]:
        """The kernel with one of the weights."""
        x, weights = inputs
        return call_kernel(kernel, problem, config, x, weights[index])

    def result(self, output: Any) -> Tensor:
        """q times its scales."""
        *_, q, scale, _ = output
        values: Tensor = q.float() * scale.repeat_interleave(BLOCK, dim=-1)
        return values

    def expected(self, kernel: KernelName, problem: ActivationProblem, inputs: Any) -> Tensor:
        """What is quantized."""
        x, weights = inputs
        if kernel == "quantize":
            y: Tensor = x
        elif kernel in ("gate", "plain"):
            y = gate_reference(x, None, "silu")
        else:
            _, y = rms_norm_reference(x, x if problem.residual else None, weights[0], _EPS, 0.0, True)
        return y

    def describe(self, problem: ActivationProblem) -> str:
        """Its sizes."""
        return f"M {problem.m} K {problem.k}" + (" residual" if problem.residual else "")


TUNING = ActivationTuning()

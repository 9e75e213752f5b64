"""One call in numbers, its floor, and why no kernel serves it."""

from __future__ import annotations

import dataclasses
import math

from torch import Tensor

from etcuda.kernels.activations.hopper.reorder import fits_k
from etcuda.kernels.common.registry import Cost
from etcuda.kernels.formats.base import BLOCK
from etcuda.torch_private import hint

ACTIVATION_DTYPES = ("int8", "exact")
_MOST_K = 1 << 20  # Offsets inside a row are 32 bits wide.


@dataclasses.dataclass(frozen=True)
class ActivationProblem:
    """Rows of activations that are computed, and quantized or reordered.

    Attributes:
        m: rows.
        k: numbers of a row of the result.
        itemsize: bytes of a number of the input.
        residual: whether a second tensor is added in front of the norm, and the sum is an output.
    """

    m: int
    k: int
    itemsize: int = 2
    residual: bool = False


def problem_of(x: Tensor) -> ActivationProblem:
    """A call of ``quantize_activation`` or ``reorder_activation``; dynamic sizes by their hints."""
    return ActivationProblem(hint(math.prod(x.shape[:-1])), hint(x.shape[-1]), x.dtype.itemsize)


def norm_problem_of(x: Tensor, residual: Tensor | None) -> ActivationProblem:
    """A call of ``rms_norm_quantize``."""
    return dataclasses.replace(problem_of(x), residual=residual is not None)


def gate_problem_of(gate: Tensor, up: Tensor | None) -> ActivationProblem:
    """A call of ``gate_quantize`` or ``gate_reorder``."""
    problem = problem_of(gate)
    return problem if up is not None else dataclasses.replace(problem, k=problem.k // 2)


def refuse(problem: ActivationProblem) -> str | None:
    """Why no kernel serves the problem; ``None`` if one does."""
    if problem.k <= 0 or problem.k % BLOCK:
        return f"K is a multiple of {BLOCK}, got {problem.k}"
    if problem.k >= _MOST_K:
        return f"K is less than {_MOST_K}, got {problem.k}"
    return None


def refuse_gate_reorder(problem: ActivationProblem) -> str | None:
    """Why the kernel that computes a gated activation does not reorder it; ``None`` if it does."""
    if not fits_k(problem.k):
        return f"K is a multiple of 256 below 65536, got {problem.k}"
    return None


def norm_cost(problem: ActivationProblem) -> Cost:
    """What a norm must do at least: load its input and a weight, store the quantized result."""
    values = problem.m * problem.k
    tensors = 1 + 2 * problem.residual
    return Cost((tensors * values + problem.k) * problem.itemsize + _quantized_bytes(values), 10 * values)


def norm_alone_cost(problem: ActivationProblem) -> Cost:
    """What a norm that is not quantized must do at least: load its input and a weight, store the result."""
    values = problem.m * problem.k
    return Cost(((2 + 2 * problem.residual) * values + problem.k) * problem.itemsize, 6 * values)


def gate_cost(problem: ActivationProblem) -> Cost:
    """What a gated activation must do at least: load gate and up, store the quantized result."""
    values = problem.m * problem.k
    return Cost(2 * values * problem.itemsize + _quantized_bytes(values), 14 * values)


def gate_reorder_cost(problem: ActivationProblem) -> Cost:
    """What a reordered gated activation must do at least: load gate and up, store 16 bits a number."""
    values = problem.m * problem.k
    return Cost(2 * values * problem.itemsize + 2 * values, 14 * values)


def quantize_cost(problem: ActivationProblem) -> Cost:
    """What dynamic quantisation must do at least: load the activations, store the quantized ones."""
    values = problem.m * problem.k
    return Cost(values * problem.itemsize + _quantized_bytes(values), 4 * values)


def reorder_cost(problem: ActivationProblem) -> Cost:
    """What reordering must do at least: load the activations, store fp16 of rows rounded up to 128."""
    width = -(-problem.k // 128) * 128
    return Cost(problem.m * (problem.k * problem.itemsize + 2 * width + 4), problem.m * problem.k)


def _quantized_bytes(values: int) -> int:
    return values + values // BLOCK * 8

"""One call in numbers, its floor, and why no kernel serves it."""

from __future__ import annotations

import dataclasses

from etcuda.kernels.activations.hopper.reorder import fits_k
from etcuda.kernels.common.registry import Cost
from etcuda.kernels.formats.base import BLOCK

_MOST_K = 1 << 20  # Offsets inside a row are 32 bits wide.


@dataclasses.dataclass(frozen=True)
class ActivationProblem:
    """Rows that are computed and rounded.

    Attributes:
        m: rows.
        k: numbers of a row that are rounded.
        itemsize: bytes of a number.
        residual: whether a second tensor is added in front of the norm, and the sum is an output.
    """

    m: int
    k: int
    itemsize: int = 2
    residual: bool = False


def refuse(problem: ActivationProblem) -> str | None:
    """Why no kernel serves the problem; ``None`` if one does."""
    if problem.k <= 0 or problem.k % BLOCK:
        return f"K is a multiple of {BLOCK}, got {problem.k}"
    if problem.k >= _MOST_K:
        return f"K is less than {_MOST_K}, got {problem.k}"
    return None


def refuse_reorder(problem: ActivationProblem) -> str | None:
    """Why activations are not put in order where they are computed; ``None`` if they are."""
    if not fits_k(problem.k):
        return f"K is a multiple of 256 below 65536, got {problem.k}"
    return None


def norm_cost(problem: ActivationProblem) -> Cost:
    """What a norm must do at least: read its input and a weight, write what is rounded."""
    values = problem.m * problem.k
    tensors = 1 + 2 * problem.residual
    return Cost((tensors * values + problem.k) * problem.itemsize + _quantized_bytes(values), 10 * values)


def gate_cost(problem: ActivationProblem) -> Cost:
    """What a gated activation must do at least: read gate and up, write what is rounded."""
    values = problem.m * problem.k
    return Cost(2 * values * problem.itemsize + _quantized_bytes(values), 14 * values)


def gate_reorder_cost(problem: ActivationProblem) -> Cost:
    """What a gated activation that is put in order must do at least: read gate and up, write 16 bits a number."""
    values = problem.m * problem.k
    return Cost(2 * values * problem.itemsize + 2 * values, 14 * values)


def _quantized_bytes(values: int) -> int:
    return values + values // BLOCK * 8


ACTIVATION_DTYPES = ("int8", "exact")


def quantize_cost(problem: ActivationProblem) -> Cost:
    """What rounding the activations of a call must do at least."""
    values = problem.m * problem.k
    return Cost(values * problem.itemsize + values + values // 32 * 8, 4 * values)


def reorder_cost(problem: ActivationProblem) -> Cost:
    """What putting the activations of a call in order must do at least: fp16 of rows rounded up to 128."""
    width = -(-problem.k // 128) * 128
    return Cost(problem.m * (problem.k * problem.itemsize + 2 * width + 4), problem.m * problem.k)

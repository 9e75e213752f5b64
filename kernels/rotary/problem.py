"""One call in numbers, its floor, and why the kernel does not serve it."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from etcuda.kernels.common.registry import Cost
from etcuda.torch_private import hint

MAX_HEAD_DIM = 512


@dataclasses.dataclass(frozen=True)
class RotaryProblem:
    """Heads that are rotated, and keys and values that are written to caches.

    Attributes:
        rows: tokens of all sequences.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        head_dim: width of a head.
        rotary_dim: how much of it is rotated.
        itemsize: bytes of a number.
    """

    rows: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    itemsize: int = 2


def problem_of(q: Tensor, k: Tensor, rotary_dim: int) -> RotaryProblem:
    """A call of the operator in numbers; dynamic sizes by their hints."""
    rows = hint(q.shape[0]) * hint(q.shape[2])
    return RotaryProblem(rows, int(q.shape[1]), int(k.shape[1]), int(q.shape[3]), rotary_dim, q.dtype.itemsize)


def refuse(problem: RotaryProblem) -> str | None:
    """Why the kernel does not serve the problem; ``None`` if it does."""
    if problem.head_dim > MAX_HEAD_DIM:
        return f"head_dim is at most {MAX_HEAD_DIM}, got {problem.head_dim}"
    if problem.rotary_dim <= 0 or problem.rotary_dim % 2:
        return f"rotary_dim is positive and even, got {problem.rotary_dim}"
    if problem.rotary_dim > problem.head_dim:
        return f"rotary_dim is at most head_dim, {problem.head_dim}, got {problem.rotary_dim}"
    return None


def cost(problem: RotaryProblem) -> Cost:
    """Every query, key and value is loaded and stored once; two products and a sum for a number that is rotated."""
    heads = problem.rows * (problem.num_heads + problem.num_kv_heads)
    values = (heads + problem.rows * problem.num_kv_heads) * problem.head_dim
    tables = problem.rows * 2 * problem.rotary_dim // 2 * 4
    return Cost(2 * values * problem.itemsize + tables, 3 * heads * problem.rotary_dim)

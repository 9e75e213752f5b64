"""One attention call in numbers: what the choice of a kernel depends on, and what the call must cost at least."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from etcuda.kernels.common.registry import Cost
from etcuda.kernels.common.sizes import hint, upper_bound

# How positions restrict keys; the numbers are the operators' argument ``causal``.
FULL, UPPER_LEFT, LOWER_RIGHT, POSITIONS = 0, 1, 2, 3
CAUSAL_NAMES = {FULL: "full", UPPER_LEFT: "upper-left", LOWER_RIGHT: "lower-right", POSITIONS: "positions"}

DTYPES = (torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 512
MIN_BLOCK = 16


@dataclasses.dataclass(frozen=True)
class AttentionProblem:
    """Shapes, dtype and masking of one call. Sizes that are dynamic are given as their hints.

    Attributes:
        batch: batch size.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        head_dim: width of a head.
        l_q: query rows.
        l_kv: keys.
        dtype: of q, k and v.
        causal: one of ``CAUSAL_NAMES``.
        window: keys that a row sees, its own included; 0 for all.
        has_mask: a mask tensor is read.
        scale: factor on the logits; ``None`` is ``head_dim ** -0.5``.
        dropout: probability; kernels take none.
        max_l_q: the most query rows, where ``l_q`` is a hint; ``None`` where nothing bounds them.
    """

    batch: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    l_q: int
    l_kv: int
    dtype: torch.dtype = torch.bfloat16
    causal: int = FULL
    window: int = 0
    has_mask: bool = False
    scale: float | None = None
    dropout: float = 0.0
    max_l_q: int | None = 0

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def block_d(self) -> int:
        """Width of a head as the kernels hold it: a power of two."""
        return padded(self.head_dim)

    @property
    def most_rows(self) -> int | None:
        """The most query rows there can be."""
        return self.l_q if self.max_l_q == 0 else self.max_l_q

    @property
    def visible_pairs(self) -> int:
        """Pairs of a query row and a key that it attends to, in one head."""
        if self.causal == FULL:
            return self.l_q * self.l_kv
        first = 0 if self.causal == UPPER_LEFT else max(self.l_kv - self.l_q, 0)
        ends = [min(first + 1, self.l_kv), min(first + self.l_q, self.l_kv)]
        if self.window:
            return self.l_q * min(self.window, self.l_kv)
        return self.l_q * (ends[0] + ends[1]) // 2

    @property
    def visible_keys(self) -> int:
        """Keys that some row attends to."""
        if self.causal == FULL or not self.window:
            return self.l_kv
        return min(self.l_kv, self.window + self.l_q - 1)


def padded(head_dim: int) -> int:
    """The next power of two, at least the least block of a matrix product."""
    return max(MIN_BLOCK, 1 << (head_dim - 1).bit_length())


def problem_of(q: Tensor, k: Tensor, mask: Tensor | None, scale: float, causal: int, window: int) -> AttentionProblem:
    """A call of an operator in numbers; dynamic sizes by their hints."""
    batch, num_heads, l_q, head_dim = q.shape
    return AttentionProblem(
        batch=hint(batch),
        num_heads=hint(num_heads),
        num_kv_heads=hint(k.shape[1]),
        head_dim=hint(head_dim),
        l_q=hint(l_q),
        l_kv=hint(k.shape[2]),
        dtype=q.dtype,
        causal=causal,
        window=window,
        has_mask=mask is not None,
        scale=scale,
        max_l_q=upper_bound(l_q) if isinstance(l_q, torch.SymInt) else 0,
    )


def cost(problem: AttentionProblem) -> Cost:
    """Every visible key and value once, queries and results once; two products per visible pair."""
    width = problem.head_dim * problem.dtype.itemsize
    keys = 2 * problem.batch * problem.num_kv_heads * problem.visible_keys
    rows = 2 * problem.batch * problem.num_heads * problem.l_q
    pairs = problem.batch * problem.num_heads * problem.visible_pairs
    return Cost(width * (keys + rows), 4 * pairs * problem.head_dim)


def refuse(problem: AttentionProblem) -> str | None:
    """Why no kernel serves the problem, or ``None``."""
    if problem.dtype not in DTYPES:
        return f"the kernels take bfloat16 and float16, got {str(problem.dtype).removeprefix('torch.')}"
    if problem.head_dim > MAX_HEAD_DIM:
        return f"head_dim is at most {MAX_HEAD_DIM}, got {problem.head_dim}"
    if problem.num_heads % problem.num_kv_heads:
        return f"num_heads is a multiple of num_kv_heads, got {problem.num_heads} and {problem.num_kv_heads}"
    if problem.dropout != 0.0:
        return f"dropout is 0, got {problem.dropout}"
    if problem.scale is not None and not (problem.scale > 0 and math.isfinite(problem.scale)):
        return f"scale is positive and finite, got {problem.scale}"
    return None

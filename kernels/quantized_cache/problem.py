"""One call in numbers, its floor, and why the kernel does not serve it."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from etcuda.kernels.attention.problem import FULL, POSITIONS, AttentionProblem
from etcuda.kernels.attention.problem import cost as attention_cost
from etcuda.kernels.common.registry import Cost
from etcuda.kernels.quantized_cache.codes import width_of
from etcuda.kernels.quantized_cache.formats import FORMATS
from etcuda.torch_private import bounds, hint

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclasses.dataclass(frozen=True)
class StoreProblem:
    """Vectors that are coded and written to caches.

    Attributes:
        vectors: keys and values of all heads and tokens.
        head_dim: width of a head.
        format: a name of ``FORMATS``.
        itemsize: bytes of a number that is coded.
    """

    vectors: int
    head_dim: int
    format: str
    itemsize: int = 2


@dataclasses.dataclass(frozen=True)
class QuantizedProblem:
    """Attention over a coded cache.

    Attributes:
        attention: the same over a cache that is not coded.
        format: a name of ``FORMATS``.
    """

    attention: AttentionProblem
    format: str


def store_problem(k: Tensor, format: str) -> StoreProblem:
    """A call of ``quantized_cache_store`` in numbers; dynamic sizes by their hints."""
    vectors = 2 * hint(k.shape[0]) * hint(k.shape[1]) * hint(k.shape[2])
    return StoreProblem(vectors, int(k.shape[3]), format, k.dtype.itemsize)


def attention_problem(
    q: Tensor, k: Tensor, mask: Tensor | None, positions: Tensor | None, format: str, scale: float, window: int
) -> QuantizedProblem:
    """A call of ``quantized_attention`` in numbers; dynamic sizes by their hints."""
    batch, heads, l_q, _ = q.shape
    attention = AttentionProblem(
        hint(batch), hint(heads), hint(k.shape[1]), width_of(k, format), hint(l_q), hint(k.shape[2]), q.dtype,
        FULL if positions is None else POSITIONS, window, mask is not None, scale,
        max_l_q=bounds(l_q)[1] if isinstance(l_q, torch.SymInt) else 0,
    )  # fmt: skip
    return QuantizedProblem(attention, format)


def refuse_store(problem: StoreProblem) -> str | None:
    """Why nothing serves the problem, or ``None``."""
    return _refuse(problem.format, problem.head_dim)


def refuse_attention(problem: QuantizedProblem) -> str | None:
    """Why nothing serves the problem, or ``None``."""
    attention = problem.attention
    if attention.dtype not in DTYPES:
        return f"queries are bfloat16, float16 or float32, got {str(attention.dtype).removeprefix('torch.')}"
    if attention.num_heads % attention.num_kv_heads:
        return f"num_heads is a multiple of num_kv_heads, got {attention.num_heads} and {attention.num_kv_heads}"
    if attention.scale is not None and not (attention.scale > 0 and math.isfinite(attention.scale)):
        return f"scale is positive and finite, got {attention.scale}"
    return _refuse(problem.format, attention.head_dim)


def _refuse(format: str, head_dim: int) -> str | None:
    if format not in FORMATS:
        return f"the format is one of {', '.join(FORMATS)}, got {format!r}"
    return FORMATS[format].refuse(head_dim)


def store_cost(problem: StoreProblem) -> Cost:
    """Every vector is loaded and its codes and scale are stored; a rotation adds log2(head_dim) times each number."""
    moved = problem.head_dim * problem.itemsize + FORMATS[problem.format].vector_bytes(problem.head_dim)
    steps = problem.head_dim.bit_length() if FORMATS[problem.format].is_rotated else 1
    return Cost(problem.vectors * moved, problem.vectors * problem.head_dim * steps)


def quantized_attention_cost(problem: QuantizedProblem) -> Cost:
    """Codes and scales of every visible key and value once, queries and results once; two products a visible pair."""
    call = problem.attention
    vectors = 2 * call.batch * call.num_kv_heads * call.visible_keys
    rows = 2 * call.batch * call.num_heads * call.l_q * call.head_dim * call.dtype.itemsize
    nbytes = vectors * FORMATS[problem.format].vector_bytes(call.head_dim) + rows
    return Cost(nbytes, attention_cost(call).flops)

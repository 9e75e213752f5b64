"""What the operators take, checked alike in eager mode, on fake tensors and at export."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from etcuda.kernels.attention.check import check_ring, check_sinks
from etcuda.kernels.attention.problem import FULL, POSITIONS
from etcuda.kernels.common.check import expect, expect_same
from etcuda.kernels.quantized_cache.formats import CODE_DTYPE, FORMATS, SCALE_DTYPE
from etcuda.kernels.quantized_cache.problem import DTYPES

_INTEGERS = (torch.int32, torch.int64)
_DIMENSIONS = "4 dimensions [batch, heads, length, head_dim]"


def check_store(
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    k_scale: Tensor,
    v_cache: Tensor,
    v_scale: Tensor,
    format: str,
) -> None:
    """Checks the arguments of ``etcuda::quantized_cache_store``.

    Raises:
        KernelArgumentError: naming the argument, what was expected and what it is.
    """
    op = "quantized_cache_store"
    for name, x in (("k", k), ("v", v)):
        expect(x.dim() == 4, op, name, _DIMENSIONS, tuple(x.shape))
        expect(x.dtype in DTYPES and x.dtype == k.dtype, op, name, "bfloat16, float16 or float32, one of both", x.dtype)
    _check_caches(op, format, k.shape[0], int(k.shape[3]), k_cache, k_scale, v_cache, v_scale)
    for name, size, wanted in zip(("batch", "heads", "length", "head_dim"), v.shape, k.shape, strict=True):
        expect_same(op, "v", name, size, wanted)
    expect_same(op, "k", "heads", k.shape[1], k_cache.shape[1])
    expect(positions.dtype in _INTEGERS, op, "positions", "int32 or int64", positions.dtype)
    expect(positions.dim() == 1, op, "positions", "one dimension [L]", tuple(positions.shape))
    expect_same(op, "positions", "size", positions.shape[0], k.shape[2])


def check_attention(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor,
    v: Tensor,
    v_scale: Tensor,
    mask: Tensor | None,
    kv_len: Tensor | None,
    positions: Tensor | None,
    sinks: Tensor | None,
    format: str,
    scale: float,
    window: int,
    softcap: float,
    ring: bool,
) -> None:
    """Checks the arguments of ``etcuda::quantized_attention``.

    Raises:
        KernelArgumentError: naming the argument, what was expected and what it is.
    """
    op = "quantized_attention"
    expect(q.dim() == 4, op, "q", _DIMENSIONS, tuple(q.shape))
    expect(q.dtype in DTYPES, op, "q", "bfloat16, float16 or float32", q.dtype)
    _check_caches(op, format, q.shape[0], int(q.shape[3]), k, k_scale, v, v_scale)
    heads, kv_heads = int(q.shape[1]), int(k.shape[1])
    expect(heads % kv_heads == 0, op, "heads", f"heads of q to be a multiple of those of k, {kv_heads}", heads)
    expect(scale > 0 and math.isfinite(scale), op, "scale", "a positive finite number", scale)
    expect(softcap >= 0 and math.isfinite(softcap), op, "softcap", "0 for none, or a positive number", softcap)
    expect(window >= 0, op, "window", "0 for none, or a number of keys", window)
    alone = window == 0 or positions is not None
    expect(alone, op, "window", "0 without positions", window, "Pass positions, or the window as a mask.")
    check_sinks(op, sinks, heads)
    if positions is not None:
        expect(positions.dtype in _INTEGERS, op, "positions", "int32 or int64", positions.dtype)
        expect(positions.dim() in (1, 2), op, "positions", "[L_q] or [batch, L_q]", tuple(positions.shape))
        expect_same(op, "positions", "last dimension", positions.shape[-1], q.shape[2])
    if mask is not None:
        known = mask.dtype == torch.bool or mask.dtype in DTYPES
        expect(known, op, "mask", "bool, bfloat16, float16 or float32", mask.dtype)
        expect(mask.dim() <= 4, op, "mask", "at most 4 dimensions", tuple(mask.shape))
    if kv_len is not None:
        expect(kv_len.dtype in _INTEGERS, op, "kv_len", "int32 or int64", kv_len.dtype)
        expect(kv_len.dim() == 1, op, "kv_len", "one dimension [batch]", tuple(kv_len.shape))
    if ring:
        causal = FULL if positions is None else POSITIONS
        check_ring(op, q.shape[2], k.shape[2], mask, kv_len, causal, window)


def _check_caches(
    op: str, format: str, batch: int, head_dim: int, k: Tensor, k_scale: Tensor, v: Tensor, v_scale: Tensor
) -> None:
    expect(format in FORMATS, op, "format", f"one of {', '.join(FORMATS)}", repr(format))
    reason = FORMATS[format].refuse(head_dim)
    expect(reason is None, op, "head_dim", "a width that the format takes", head_dim, f"{reason}.".capitalize())
    for name, codes in (("codes of k", k), ("codes of v", v)):
        expect(codes.dim() == 4, op, name, "4 dimensions [batch, kv_heads, places, width]", tuple(codes.shape))
        expect(codes.dtype == CODE_DTYPE, op, name, "uint8", codes.dtype)
        expect(codes.is_contiguous(), op, name, "contiguous memory", codes.stride())
        expect_same(op, name, "batch", codes.shape[0], batch)
        expect_same(op, name, "width", codes.shape[3], FORMATS[format].width(head_dim))
        for index, what in ((1, "heads"), (2, "places")):
            expect_same(op, name, what, codes.shape[index], k.shape[index])
    for name, scales in (("scales of k", k_scale), ("scales of v", v_scale)):
        expect(scales.dim() == 3, op, name, "3 dimensions [batch, kv_heads, places]", tuple(scales.shape))
        expect(scales.dtype == SCALE_DTYPE, op, name, "bfloat16", scales.dtype)
        expect(scales.is_contiguous(), op, name, "contiguous memory", scales.stride())
        for index, what in enumerate(("batch", "heads", "places")):
            expect_same(op, name, what, scales.shape[index], k.shape[index])

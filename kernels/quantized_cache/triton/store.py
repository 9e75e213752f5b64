"""Writes of keys and values to a coded cache."""

from __future__ import annotations

import triton
import triton.language as tl

from etcuda.kernels.quantized_cache.triton.codes import to_bytes, to_nibbles
from etcuda.kernels.quantized_cache.triton.rotate import hadamard, head_signs


@triton.jit
def quantized_store_kernel(
    k, v,  # [batch, heads, L, D], the last dimension dense
    positions,  # [L]
    k_cache, k_scale, v_cache, v_scale,  # [batch, heads, places, WIDTH] and [batch, heads, places], contiguous
    stride_kb, stride_kh, stride_kl, stride_vb, stride_vh, stride_vl, stride_p, rows, length, places,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr, FORMAT: tl.constexpr,
):  # fmt: skip
    """Grid: (batch * L, 2 * heads). A CTA has one key or one value."""
    row = tl.program_id(0)
    exists = row < rows  # False in the only CTAs of an empty tensor.
    b = (row // length).to(tl.int64)
    token = (row % length).to(tl.int64)
    is_value = tl.program_id(1) >= HEADS
    h = (tl.program_id(1) % HEADS).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    if is_value:
        source = v + b * stride_vb + h * stride_vh + token * stride_vl
    else:
        source = k + b * stride_kb + h * stride_kh + token * stride_kl
    x = tl.load(source + column, mask=exists & (column < D), other=0.0).to(tl.float32)
    at = tl.load(positions + token * stride_p, mask=exists, other=0).to(tl.int64)
    at = tl.where(at < 0, at + places, at)
    # Nothing is written outside of the caches.
    exists = exists & (at >= 0) & (at < places)
    place = (b * HEADS + h) * places + at
    if is_value:
        codes_at = v_cache + place * WIDTH
        scale_at = v_scale + place
    else:
        codes_at = k_cache + place * WIDTH
        scale_at = k_scale + place
    if FORMAT == 2:
        length_of = tl.sqrt(tl.sum(x * x, 0))
        turned = hadamard(x * head_signs(column), D, tl.float32 == k.dtype.element_ty)
        nibbles = to_nibbles(tl.where(length_of > 0, turned / tl.where(length_of > 0, length_of, 1.0), 0.0))
        low, high = tl.split(tl.reshape(nibbles, [D // 2, 2]))
        codes = (low | (high << 4)).to(tl.uint8)
        tl.store(codes_at + tl.arange(0, D // 2), codes, mask=exists)
        tl.store(scale_at, length_of.to(tl.bfloat16), mask=exists)
    else:
        GREATEST: tl.constexpr = 127.0 if FORMAT == 0 else 448.0
        scale = (tl.max(tl.abs(x), 0) * (1.0 / GREATEST)).to(tl.bfloat16)
        wide = scale.to(tl.float32)
        x = tl.where(wide > 0, x / tl.where(wide > 0, wide, 1.0), 0.0)
        x = tl.minimum(tl.maximum(x, -GREATEST), GREATEST)
        tl.store(codes_at + column, to_bytes(x, FORMAT).to(tl.uint8), mask=exists & (column < D))
        tl.store(scale_at, scale, mask=exists)

"""RMSNorm, whose result is quantized to int8 per block of 32 before it leaves the registers if that is wanted.

Threads of ``rms_norm_quantize_pdl`` load the weight first, and wait before they load what another kernel stores.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from etcuda.kernels.common.blocks import quantize_blocks


@triton.jit
def _load_weight(weight, column, inside, WEIGHT_OFFSET: tl.constexpr, HAS_WEIGHT: tl.constexpr):
    if HAS_WEIGHT:
        return tl.load(weight + column, mask=inside, other=0.0).to(tl.float32) + WEIGHT_OFFSET
    else:
        return tl.full(column.shape, 1.0, tl.float32)


@triton.jit
def _load_sum(x, residual, column, inside, HAS_RESIDUAL: tl.constexpr):
    """x + residual, rounded to the dtype of ``x``, in fp32."""
    value = tl.load(x + column, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        more = tl.load(residual + column, mask=inside, other=0.0)
        value = (value.to(tl.float32) + more.to(tl.float32)).to(x.dtype.element_ty)
    return value.to(tl.float32)


@triton.jit
def _store_norm(
    value, inverse, w, y, q, scale, total, block, column, inside, kept,
    CAST_FIRST: tl.constexpr, KEEP_Y: tl.constexpr, QUANTIZE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Scales a tile, rounds it to the dtype, quantizes it and stores it."""
    normed = value * inverse
    if CAST_FIRST:
        normed = normed.to(DTYPE).to(tl.float32)
    result = (normed * w).to(DTYPE)
    if KEEP_Y:
        tl.store(y + column, result, mask=inside)
    if QUANTIZE:
        quantized, step, sums = quantize_blocks(result.to(tl.float32))
        tl.store(q + column, quantized.to(tl.int8), mask=inside)
        tl.store(scale + block, step, mask=kept)
        tl.store(total + block, sums, mask=kept)


@triton.jit
def _rms_norm_quantize(
    x, residual,  # [num_rows, K], rows x_stride and residual_stride apart
    weight,  # [K]
    h, y, q,  # [num_rows, K]; q if it is quantized
    scale, total,  # [num_rows, K / 32] fp32, likewise
    x_stride, residual_stride, num_rows,
    K: tl.constexpr, EPS: tl.constexpr, WEIGHT_OFFSET: tl.constexpr, CAST_FIRST: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr, KEEP_H: tl.constexpr, KEEP_Y: tl.constexpr,
    QUANTIZE: tl.constexpr, BLOCKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A CTA computes a row. BLOCKS is a power of two; of a row that has more, the threads load everything twice."""
    DTYPE: tl.constexpr = x.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    exists = row < num_rows  # False in the only CTA of an empty tensor.
    x += row * x_stride
    residual += row * residual_stride
    h += row * K
    y += row * K
    q += row * K
    scale += row * (K // 32)
    total += row * (K // 32)
    block = tl.arange(0, BLOCKS)
    column = block[:, None] * 32 + tl.arange(0, 32)[None, :]
    if BLOCKS * 32 >= K:
        inside = (column < K) & exists
        if PDL:
            gdc_launch_dependents()
        w = _load_weight(weight, column, column < K, WEIGHT_OFFSET, HAS_WEIGHT)
        if PDL:
            gdc_wait()
        value = _load_sum(x, residual, column, inside, HAS_RESIDUAL)
        if KEEP_H:
            tl.store(h + column, value.to(DTYPE), mask=inside)
        inverse = tl.rsqrt(tl.sum(value * value) / K + EPS)
        kept = (block < K // 32) & exists
        _store_norm(
            value, inverse, w, y, q, scale, total, block, column, inside, kept, CAST_FIRST, KEEP_Y, QUANTIZE, DTYPE
        )
    else:
        if PDL:
            gdc_launch_dependents()
            gdc_wait()
        squares = tl.zeros([BLOCKS, 32], tl.float32)
        for start in tl.range(0, K // 32, BLOCKS):
            at = start * 32 + column
            inside = (at < K) & exists
            value = _load_sum(x, residual, at, inside, HAS_RESIDUAL)
            if KEEP_H:
                tl.store(h + at, value.to(DTYPE), mask=inside)
            squares += value * value
        inverse = tl.rsqrt(tl.sum(squares) / K + EPS)
        for start in tl.range(0, K // 32, BLOCKS):
            at = start * 32 + column
            inside = (at < K) & exists
            value = _load_sum(x, residual, at, inside, HAS_RESIDUAL)
            w = _load_weight(weight, at, at < K, WEIGHT_OFFSET, HAS_WEIGHT)
            kept = (start + block < K // 32) & exists
            _store_norm(
                value, inverse, w, y, q, scale, total, start + block, at, inside, kept, CAST_FIRST, KEEP_Y, QUANTIZE,
                DTYPE,
            )  # fmt: skip


@triton.jit
def rms_norm_quantize_kernel(
    x, residual,  # [num_rows, K], rows x_stride and residual_stride apart
    weight,  # [K]
    h, y, q,  # [num_rows, K]; q if it is quantized
    scale, total,  # [num_rows, K / 32] fp32, likewise
    x_stride, residual_stride, num_rows,
    K: tl.constexpr, EPS: tl.constexpr, WEIGHT_OFFSET: tl.constexpr, CAST_FIRST: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr, KEEP_H: tl.constexpr, KEEP_Y: tl.constexpr,
    QUANTIZE: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """RMSNorm of x + residual, quantized to int8 if that is wanted; a CTA a row."""
    _rms_norm_quantize(
        x, residual, weight, h, y, q, scale, total, x_stride, residual_stride, num_rows,
        K, EPS, WEIGHT_OFFSET, CAST_FIRST, HAS_RESIDUAL, HAS_WEIGHT, KEEP_H, KEEP_Y, QUANTIZE, BLOCKS, False,
    )  # fmt: skip


@triton.jit
def rms_norm_quantize_pdl(
    x, residual,  # [num_rows, K], rows x_stride and residual_stride apart
    weight,  # [K]
    h, y, q,  # [num_rows, K]; q if it is quantized
    scale, total,  # [num_rows, K / 32] fp32, likewise
    x_stride, residual_stride, num_rows,
    K: tl.constexpr, EPS: tl.constexpr, WEIGHT_OFFSET: tl.constexpr, CAST_FIRST: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr, KEEP_H: tl.constexpr, KEEP_Y: tl.constexpr,
    QUANTIZE: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Like ``rms_norm_quantize_kernel``, and may be launched while the kernel in front of it runs, if that does not
    store ``weight``."""
    _rms_norm_quantize(
        x, residual, weight, h, y, q, scale, total, x_stride, residual_stride, num_rows,
        K, EPS, WEIGHT_OFFSET, CAST_FIRST, HAS_RESIDUAL, HAS_WEIGHT, KEEP_H, KEEP_Y, QUANTIZE, BLOCKS, True,
    )  # fmt: skip

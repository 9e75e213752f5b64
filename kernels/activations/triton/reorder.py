"""Reorders activations along K, and converts them to the dtype that the tensor-core product loads."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from etcuda.kernels.common.blocks import MAGIC, TINY, greatest


@triton.jit
def _reorder(
    x, reordered, factor, num_tokens,
    K: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, QUANTIZE: tl.constexpr, UNITS: tl.constexpr,
    SWEEP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rows of activations in fp16, reordered along K as ``matmul_kernel`` loads them.

    Row m of ``reordered`` [num_tokens, WIDTH] is x[m] / factor[m], a power of two; columns beyond K are zero. With
    QUANTIZE the activations are first quantized to int8 per block of 32. CTAs (m, i) share a row: each loads all of it,
    SWEEP activations at a time, to find the greatest, and reorders UNITS units of 128 at a time.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    CHUNK: tl.constexpr = UNITS * 128
    block = tl.arange(0, UNITS * 4)
    at = block[:, None] * 32 + tl.arange(0, 32)[None, :]
    swept = tl.arange(0, SWEEP)
    most = tl.zeros([SWEEP], tl.float32)
    for start in range(0, K, SWEEP):
        values = tl.load(x + row * K + start + swept, mask=(start + swept < K) & (row < num_tokens), other=0.0)
        most = greatest(most, tl.abs(values.to(tl.float32)))
    # Of the greatest magnitude the exponent alone: activations below 2^14 in fp16, exact down to 2^-24 of the greatest.
    exponent = (tl.max(most, 0).to(tl.int32, bitcast=True) >> 23) & 0xFF
    exponent = tl.minimum(tl.maximum(exponent, 27), 240)
    down = ((254 + 13 - exponent) << 23).to(tl.float32, bitcast=True)
    if (tl.program_id(1) == 0) & (row < num_tokens):
        tl.store(factor + row, ((exponent - 13) << 23).to(tl.float32, bitcast=True))
    for start in range(tl.program_id(1) * CHUNK, WIDTH, tl.num_programs(1) * CHUNK):
        values = tl.load(x + row * K + start + at, mask=(start + at < K) & (row < num_tokens), other=0.0).to(tl.float32)
        if QUANTIZE:
            amax = tl.max(tl.abs(values), 1)
            small = amax < TINY
            inverse = tl.where(small, 0.0, 127.0 / amax)
            step = tl.where(small, 0.0, amax * (1.0 / 127.0))
            # The differences are NaN where the value is.
            values = (values * inverse[:, None] + MAGIC - MAGIC) * step[:, None]
        units = (values * down).to(tl.float16)
        if BITS == 4:
            # 128 unit + 32 block + 16 high + 4 word + 2 e + odd
            # goes to 128 unit + 64 high + 16 word + 8 odd + 2 block + e
            units = tl.permute(tl.reshape(units, [UNITS, 4, 2, 4, 2, 2]), [0, 2, 3, 5, 1, 4])
        else:
            # 128 unit + 32 block + 4 word + 2 second + e goes to 128 unit + 16 word + 8 second + 2 block + e
            units = tl.permute(tl.reshape(units, [UNITS, 4, 8, 2, 2]), [0, 2, 3, 1, 4])
        units = tl.reshape(units, [CHUNK])
        column = start + tl.arange(0, CHUNK)
        tl.store(reordered + row * WIDTH + column, units, mask=(column < WIDTH) & (row < num_tokens))


@triton.jit
def reorder_kernel(
    x, reordered, factor, num_tokens,
    K: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, QUANTIZE: tl.constexpr, UNITS: tl.constexpr,
    SWEEP: tl.constexpr,
):  # fmt: skip
    """Reorders activations; grid: (tokens, CTAs that share a row)."""
    _reorder(x, reordered, factor, num_tokens, K, WIDTH, BITS, QUANTIZE, UNITS, SWEEP, False)


@triton.jit
def reorder_pdl(
    x, reordered, factor, num_tokens,
    K: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, QUANTIZE: tl.constexpr, UNITS: tl.constexpr,
    SWEEP: tl.constexpr,
):  # fmt: skip
    """Like ``reorder_kernel``, and may be launched while the kernel in front of it runs."""
    _reorder(x, reordered, factor, num_tokens, K, WIDTH, BITS, QUANTIZE, UNITS, SWEEP, True)

"""Experts of many tokens on tensor cores: a tile is BLOCK_N features of one expert for BLOCK_M of its rows.

Rows are sorted by expert by plan.py, which lists the tiles. As in kernels/linear, the transposed product weight @ x^T
is computed, so that quantized weights, which become fp16 in registers, are the operand that is read from there.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from etcuda.kernels.experts.triton.gate import gated
from etcuda.kernels.linear.triton.dequantize import WEIGHT_FACTOR, dequantize
from etcuda.kernels.linear.triton.matmul import load_scales


@triton.jit
def _load_step(
    words_at, s_at, z_at, ss_at, zs_at, row, step,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, SCALE_CODES: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """The weights of a step, fp16 or as they are, [BLOCK_N, 32 * BLOCKS]; 0 beyond K."""
    if BITS > 8:
        column = step * (BLOCKS * 32) + tl.arange(0, BLOCKS * 32)
        at = words_at + (row[:, None] * K + column[None, :])
        if K % (BLOCKS * 32) == 0:
            return tl.load(at)
        else:
            return tl.load(at, mask=(column < K)[None, :], other=0.0)
    else:
        word = step * (BLOCKS * BITS) + tl.arange(0, BITS * BLOCKS)
        at = words_at + (row[:, None] * (K * BITS // 32) + word[None, :])
        mask = (word < K * BITS // 32)[None, :]
        words = tl.load(at) if K % (BLOCKS * 32) == 0 else tl.load(at, mask=mask, other=0)
        s, z, ss, zs = load_scales(s_at, z_at, ss_at, zs_at, row, step, K, GROUP, OFFSET, SCALE_CODES, BLOCKS)
        return dequantize(words, s, z, ss, zs, BITS, GROUP, OFFSET, SCALE_CODES)


@triton.jit
def _tile(
    x, factor, order, qdata, scale, zero, scale_step, zero_step, bias, out, out_features, expert, first, end,
    first_n,
    K: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr,
    SCALE_CODES: tl.constexpr, HAS_BIAS: tl.constexpr, TOP_K: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCKS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Features from ``first_n`` on for rows from ``first`` on, which end before ``end``."""
    GATED: tl.constexpr = ACTIVATION != "none"
    STEPS: tl.constexpr = (K + 32 * BLOCKS - 1) // (32 * BLOCKS)
    STRIDE: tl.constexpr = K * BITS // 32 if BITS <= 8 else K
    m = first + tl.arange(0, BLOCK_M)
    inside = m < end
    given = tl.load(order + m, mask=inside, other=0)
    source = given // TOP_K if GATED else tl.minimum(m, end - 1)
    # Rows behind the last one repeat it: what they give is not stored.
    row = tl.minimum(tl.arange(0, BLOCK_N), out_features - 1 - first_n)
    top = expert * out_features * (2 if GATED else 1) + first_n
    words_at = qdata + top * STRIDE
    s_at = scale + top * (K // GROUP)
    z_at = zero + top * (K // GROUP)
    ss_at = scale_step + top * (K // 256)
    zs_at = zero_step + top * (K // 256)
    skip = tl.cast(out_features, tl.int64)
    k = tl.arange(0, 32 * BLOCKS)
    x_at = x + (source.to(tl.int64)[None, :] * WIDTH + k[:, None])
    accumulator = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    more = accumulator
    for step in tl.range(0, STEPS, num_stages=STAGES):
        if WIDTH % (32 * BLOCKS) == 0:
            xs = tl.load(x_at + step * (32 * BLOCKS))
        else:
            xs = tl.load(x_at + step * (32 * BLOCKS), mask=(step * (32 * BLOCKS) + k < WIDTH)[:, None], other=0.0)
        w = _load_step(words_at, s_at, z_at, ss_at, zs_at, row, step, K, BITS, GROUP, OFFSET, SCALE_CODES, BLOCKS)
        accumulator = tl.dot(w, xs, accumulator, input_precision="ieee")
        if GATED:
            u = _load_step(
                words_at + skip * STRIDE, s_at + skip * (K // GROUP), z_at + skip * (K // GROUP),
                ss_at + skip * (K // 256), zs_at + skip * (K // 256), row, step, K, BITS, GROUP, OFFSET, SCALE_CODES,
                BLOCKS,
            )  # fmt: skip
            more = tl.dot(u, xs, more, input_precision="ieee")
    DTYPE: tl.constexpr = out.dtype.element_ty
    n = first_n + tl.arange(0, BLOCK_N)
    values = accumulator
    if BITS <= 8:
        times = tl.load(factor + source, mask=inside, other=0.0) * (1.0 / WEIGHT_FACTOR)
        values = values * times[None, :]
        more = more * times[None, :]
    if HAS_BIAS:
        values += tl.load(bias + top + row).to(tl.float32)[:, None]
        if GATED:
            more += tl.load(bias + top + skip + row).to(tl.float32)[:, None]
    if GATED:
        result = gated(values, more, ACTIVATION, DTYPE)
        target = m
    else:
        result = values.to(DTYPE)
        target = given
    at = out + (target.to(tl.int64)[None, :] * out_features + n[:, None])
    tl.store(at, result, mask=(n < out_features)[:, None] & inside[None, :])


@triton.jit
def _grouped(
    x, factor, order, tiles, qdata, scale, zero, scale_step, zero_step, bias, out, out_features,
    K: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr,
    SCALE_CODES: tl.constexpr, HAS_BIAS: tl.constexpr, TOP_K: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCKS: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    tiles_n = tl.cdiv(out_features, BLOCK_N)
    tile = tl.program_id(0) // tiles_n
    if tile >= tl.load(tiles):
        return
    expert = tl.load(tiles + 4 + tile * 4).to(tl.int64)
    start = tl.load(tiles + 5 + tile * 4)
    end = tl.load(tiles + 6 + tile * 4)
    # Of an expert's CTAs those that read the same weights follow each other.
    count = tl.cdiv(end - start, BLOCK_M)
    local = tl.program_id(0) - tl.load(tiles + 7 + tile * 4) * tiles_n
    first = start + local % count * BLOCK_M
    first_n = local // count * BLOCK_N
    if BITS <= 8:
        qdata = qdata.to(tl.pointer_type(tl.int32), bitcast=True)
    # An expert's last tile is half as high if that is enough.
    HALF: tl.constexpr = BLOCK_M // 2 if BLOCK_M >= 32 else BLOCK_M
    if end - first <= HALF:
        _tile(
            x, factor, order, qdata, scale, zero, scale_step, zero_step, bias, out, out_features, expert, first, end,
            first_n, K, WIDTH, BITS, GROUP, OFFSET, SCALE_CODES, HAS_BIAS, TOP_K, ACTIVATION, BLOCK_N, HALF, BLOCKS,
            STAGES,
        )  # fmt: skip
    else:
        _tile(
            x, factor, order, qdata, scale, zero, scale_step, zero_step, bias, out, out_features, expert, first, end,
            first_n, K, WIDTH, BITS, GROUP, OFFSET, SCALE_CODES, HAS_BIAS, TOP_K, ACTIVATION, BLOCK_N, BLOCK_M, BLOCKS,
            STAGES,
        )  # fmt: skip


@triton.jit
def grouped_kernel(
    x,  # gated: [num_tokens, WIDTH]; else [num_rows, WIDTH]; of quantized weights what reorder_kernel stores
    factor,  # what it divided them by, one for each row; otherwise not read
    order,  # [num_rows] int32: the assignments sorted by expert, token * TOP_K + choice
    tiles,  # [1 + most tiles, 4] int32, as of place_kernel
    qdata, scale, zero, scale_step, zero_step,  # [num_experts, out_features or twice that, K]
    bias,  # [num_experts, out_features or twice that]
    out,  # gated: [num_rows, out_features], sorted; else in the order of assignments
    out_features,
    K: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr,
    SCALE_CODES: tl.constexpr, HAS_BIAS: tl.constexpr, TOP_K: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCKS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The experts' products, with an activation gated ones; grid: most tiles times tiles of features."""
    _grouped(
        x, factor, order, tiles, qdata, scale, zero, scale_step, zero_step, bias, out, out_features, K, WIDTH, BITS,
        GROUP, OFFSET, SCALE_CODES, HAS_BIAS, TOP_K, ACTIVATION, BLOCK_N, BLOCK_M, BLOCKS, STAGES, False,
    )  # fmt: skip


@triton.jit
def grouped_pdl(
    x,  # gated: [num_tokens, WIDTH]; else [num_rows, WIDTH]; of quantized weights what reorder_kernel stores
    factor,  # what it divided them by, one for each row; otherwise not read
    order,  # [num_rows] int32: the assignments sorted by expert, token * TOP_K + choice
    tiles,  # [1 + most tiles, 4] int32, as of place_kernel
    qdata, scale, zero, scale_step, zero_step,  # [num_experts, out_features or twice that, K]
    bias,  # [num_experts, out_features or twice that]
    out,  # gated: [num_rows, out_features], sorted; else in the order of assignments
    out_features,
    K: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr,
    SCALE_CODES: tl.constexpr, HAS_BIAS: tl.constexpr, TOP_K: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCKS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """``grouped_kernel`` that may be launched while the kernel in front of it runs."""
    _grouped(
        x, factor, order, tiles, qdata, scale, zero, scale_step, zero_step, bias, out, out_features, K, WIDTH, BITS,
        GROUP, OFFSET, SCALE_CODES, HAS_BIAS, TOP_K, ACTIVATION, BLOCK_N, BLOCK_M, BLOCKS, STAGES, True,
    )  # fmt: skip

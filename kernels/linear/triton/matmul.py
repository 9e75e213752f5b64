"""Products with many tokens, on tensor cores: weights become fp16 in registers, never in memory.

The transposed product weight [N, K] @ x^T [K, M] is computed, so that the weights are the operand that a tensor core
reads from registers.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from etcuda.kernels.linear.triton.dequantize import WEIGHT_FACTOR, dequantize


@triton.jit
def _load_inside(base, offset, group, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    if GROUPS % WIDTH == 0:
        return tl.load(base + offset)
    else:
        return tl.load(base + offset, mask=(group < GROUPS)[None, :], other=0)


@triton.jit
def load_scales(
    s_at, z_at, ss_at, zs_at, row, step,
    K: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, SCALE_CODES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """What scales the blocks of a step, as stored [rows, BLOCKS]; 0 beyond K. Absent components repeat the scale."""
    PER: tl.constexpr = 2 if GROUP < 32 else 1
    index = step * (BLOCKS * PER) + tl.arange(0, BLOCKS * PER)
    group = row[:, None] * (K // GROUP) + (index // (GROUP * PER // 32))[None, :]
    s = _load_inside(s_at, group, index, K // 32 * PER, BLOCKS * PER)
    z = s
    ss = s
    zs = s
    if OFFSET != "symmetric":
        z = _load_inside(z_at, group, index, K // 32 * PER, BLOCKS * PER)
    if SCALE_CODES:
        coarse = row[:, None] * (K // 256) + (index // (8 * PER))[None, :]
        ss = _load_inside(ss_at, coarse, index, K // 32 * PER, BLOCKS * PER)
        if OFFSET == "minimum":
            zs = _load_inside(zs_at, coarse, index, K // 32 * PER, BLOCKS * PER)
    return s, z, ss, zs


@triton.jit
def _matmul(
    x,  # [num_tokens rounded up to BLOCK_M, WIDTH] fp16, as of reorder_kernel; what rows beyond hold is ignored
    factor,  # [num_tokens] fp32
    qdata, scale, zero, scale_step, zero_step, bias,
    out,  # [num_tokens, out_features]
    partial,  # [2 * ctas, BLOCK_M, BLOCK_N] fp32
    out_features, num_tokens,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, SCALE_CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr, EVEN_N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCKS: tl.constexpr,
    STAGES: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """CTAs take whole tiles in waves, and equal shares of the steps of the tiles that do not fill a last wave
    (stream-K); ``reduce_kernel`` sums the partials of a shared tile. A step is BLOCKS blocks of 32 along K."""
    WIDTH: tl.constexpr = (K + 127) // 128 * 128
    STEPS: tl.constexpr = (K // 32 + BLOCKS - 1) // BLOCKS
    EVEN_K: tl.constexpr = K % (32 * BLOCKS) == 0
    qdata = qdata.to(tl.pointer_type(tl.int32), bitcast=True)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    cta = tl.program_id(0)
    ctas = tl.num_programs(0)
    tiles_m = tl.cdiv(num_tokens, BLOCK_M)
    tiles = tl.cdiv(out_features, BLOCK_N) * tiles_m
    waves = tiles // ctas
    shared = (tiles - waves * ctas).to(tl.int64) * STEPS
    begin = (shared * cta // ctas).to(tl.int32)
    end = (shared * (cta + 1) // ctas).to(tl.int32)
    unit = begin
    wave = 0
    local_n = tl.arange(0, BLOCK_N)
    word = tl.arange(0, BITS * BLOCKS)
    k = tl.arange(0, 32 * BLOCKS)
    x_offset = tl.arange(0, BLOCK_M)[None, :] * WIDTH + k[:, None]
    while (wave < waves) | (unit < end):
        if wave < waves:
            tile = wave * ctas + cta
            first = 0
            last = STEPS
        else:
            tile = waves * ctas + unit // STEPS
            first = unit % STEPS
            last = tl.minimum(STEPS, first + (end - unit))
        first_n = tile // tiles_m * BLOCK_N
        first_m = tile % tiles_m * BLOCK_M
        row = local_n
        if not EVEN_N:
            # Rows beyond the last repeat it: what they give is not stored.
            row = tl.minimum(local_n, out_features - 1 - first_n)
        word_offset = row[:, None] * (K * BITS // 32) + word[None, :]
        words_at = qdata + first_n.to(tl.int64) * (K * BITS // 32)
        s_at = scale + first_n.to(tl.int64) * (K // GROUP)
        z_at = zero + first_n.to(tl.int64) * (K // GROUP)
        ss_at = scale_step + first_n.to(tl.int64) * (K // 256)
        zs_at = zero_step + first_n.to(tl.int64) * (K // 256)
        x_at = x + first_m.to(tl.int64) * WIDTH
        accumulator = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        if AHEAD:
            # A thread loads too little of these tiles for an asynchronous copy: they are loaded one step ahead instead.
            s, z, ss, zs = load_scales(
                s_at, z_at, ss_at, zs_at, row, first, K, GROUP, OFFSET, SCALE_CODES, BLOCKS
            )  # fmt: skip
        for i in tl.range(first, last, num_stages=STAGES):
            n_s, n_z, n_ss, n_zs = load_scales(
                s_at, z_at, ss_at, zs_at, row, tl.minimum(i + 1, last - 1) if AHEAD else i, K, GROUP, OFFSET,
                SCALE_CODES, BLOCKS,
            )  # fmt: skip
            if not AHEAD:
                s, z, ss, zs = n_s, n_z, n_ss, n_zs
            start = i * BLOCKS
            if EVEN_K:
                words = tl.load(words_at + start * BITS + word_offset)
                xs = tl.load(x_at + start * 32 + x_offset)
            else:
                inside = (start * BITS + word < K * BITS // 32)[None, :]
                words = tl.load(words_at + start * BITS + word_offset, mask=inside, other=0)
                xs = tl.load(x_at + start * 32 + x_offset, mask=(start * 32 + k < WIDTH)[:, None], other=0.0)
            accumulator = tl.dot(dequantize(words, s, z, ss, zs, BITS, GROUP, OFFSET, SCALE_CODES), xs, accumulator)
            if AHEAD:
                s, z, ss, zs = n_s, n_z, n_ss, n_zs
        n = first_n + local_n
        m = first_m + tl.arange(0, BLOCK_M)
        if last - first == STEPS:
            up = tl.load(factor + m, mask=m < num_tokens, other=0.0) * (1.0 / WEIGHT_FACTOR)
            values = accumulator * up[None, :]
            if HAS_BIAS:
                values += tl.load(bias + n, mask=n < out_features, other=0.0).to(tl.float32)[:, None]
            at = out + (m.to(tl.int64)[None, :] * out_features + n[:, None])
            tl.store(at, values.to(out.dtype.element_ty), mask=(n < out_features)[:, None] & (m < num_tokens)[None, :])
        else:
            slot = 2 * cta + (unit > begin).to(tl.int32)
            partial_at = partial + slot.to(tl.int64) * (BLOCK_N * BLOCK_M)
            tl.store(partial_at + local_n[:, None] + tl.arange(0, BLOCK_M)[None, :] * BLOCK_N, accumulator)
        if wave >= waves:
            unit += last - first
        wave += 1


@triton.jit
def matmul_kernel(
    x,  # [num_tokens rounded up to BLOCK_M, WIDTH] fp16, as of reorder_kernel; what rows beyond hold is ignored
    factor,  # [num_tokens] fp32
    qdata, scale, zero, scale_step, zero_step, bias,
    out,  # [num_tokens, out_features]
    partial,  # [2 * ctas, BLOCK_M, BLOCK_N] fp32
    out_features, num_tokens,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, SCALE_CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr, EVEN_N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCKS: tl.constexpr,
    STAGES: tl.constexpr, AHEAD: tl.constexpr, MAX_REGISTERS: tl.constexpr,
):  # fmt: skip
    """The product; grid: CTAs. The compiler reads MAX_REGISTERS: registers of a thread, 0 for no bound."""
    _matmul(
        x, factor, qdata, scale, zero, scale_step, zero_step, bias, out, partial, out_features, num_tokens, K, BITS,
        GROUP, OFFSET, SCALE_CODES, HAS_BIAS, EVEN_N, BLOCK_N, BLOCK_M, BLOCKS, STAGES, AHEAD, False,
    )  # fmt: skip


@triton.jit
def matmul_pdl(
    x,  # [num_tokens rounded up to BLOCK_M, WIDTH] fp16, as of reorder_kernel; what rows beyond hold is ignored
    factor,  # [num_tokens] fp32
    qdata, scale, zero, scale_step, zero_step, bias,
    out,  # [num_tokens, out_features]
    partial,  # [2 * ctas, BLOCK_M, BLOCK_N] fp32
    out_features, num_tokens,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, SCALE_CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr, EVEN_N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCKS: tl.constexpr,
    STAGES: tl.constexpr, AHEAD: tl.constexpr, MAX_REGISTERS: tl.constexpr,
):  # fmt: skip
    """Like ``matmul_kernel``, and may be launched while the kernel in front of it runs."""
    _matmul(
        x, factor, qdata, scale, zero, scale_step, zero_step, bias, out, partial, out_features, num_tokens, K, BITS,
        GROUP, OFFSET, SCALE_CODES, HAS_BIAS, EVEN_N, BLOCK_N, BLOCK_M, BLOCKS, STAGES, AHEAD, True,
    )  # fmt: skip

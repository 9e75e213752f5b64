"""Products with up to eight rows of activations: int8 activations, int4 or int8 weights, integer dot products of
four bytes.

Two kernels. ``resident_kernel`` rounds a whole row of activations once per program, keeps it in registers and walks
over tiles of weight rows. ``stepped_kernel`` takes one tile of weight rows per program and walks along K; its
activations are rounded on the way or were rounded before. ``*_pdl`` ask for weights, and then wait on the GPU
for the kernel in front of them ("programmatic dependent launch").
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from etcuda.kernels.common.blocks import (
    MAGIC,
    MAGIC_BITS,
    dp4a,
    load_pairs,
    load_quantized,
    quantize_pairs,
    split4,
    to_float,
)


@triton.jit
def load_weights(
    qdata, scale, zero, scale_step, zero_step, row4, row3, block4, block3, num_rows,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, CODES: tl.constexpr,
    PIN: tl.constexpr,
):  # fmt: skip
    """Tiles of words and what scales them, as stored; absent components repeat another.

    Returns:
        The first four words of each block, of int8 also the other four; scale, of groups of 16 also the second group's;
        zero; steps of both.
    """
    BLOCKS: tl.constexpr = K // 32
    ROW: tl.constexpr = K * BITS // 32
    inside4 = (row4 < num_rows) & (block4 < BLOCKS)
    inside3 = (row3 < num_rows) & (block3 < BLOCKS)
    word = row4 * ROW + (block4 * BITS + tl.arange(0, 4)[None, None, None, :])
    words = tl.load(qdata + word, mask=inside4, other=0, eviction_policy="evict_first")
    more = words
    if BITS == 8:
        more = tl.load(qdata + word + 4, mask=inside4, other=0, eviction_policy="evict_first")
    if GROUP >= 32:
        group = row3 * (K // GROUP) + block3 // (GROUP // 32)
    else:
        group = row3 * (K // GROUP) + block3 * (32 // GROUP)
    step = row3 * (K // 256) + block3 // 8
    if PIN:
        # Wider loads of scales would give a lane other blocks than those whose weights it has.
        group = tl.max_contiguous(group, [1, 1, 1])
        step = tl.max_contiguous(step, [1, 1, 1])
    s = tl.load(scale + group, mask=inside3, other=0, eviction_policy="evict_first")
    more_s = s
    z = s
    ss = s
    zs = s
    if GROUP < 32:
        more_s = tl.load(scale + group + 1, mask=inside3, other=0, eviction_policy="evict_first")
    if OFFSET != "symmetric":
        z = tl.load(zero + group, mask=inside3, other=0, eviction_policy="evict_first")
    if CODES:
        ss = tl.load(scale_step + step, mask=inside3, other=0, eviction_policy="evict_first")
        if OFFSET == "minimum":
            zs = tl.load(zero_step + step, mask=inside3, other=0, eviction_policy="evict_first")
    return words, more, s, more_s, z, ss, zs


@triton.jit
def _dot(word, codes, total):
    word, codes = tl.broadcast(word, codes)
    return dp4a(word, codes, total)


@triton.jit
def _dot_halves(word, low, high, total):
    """Adds the products of eight int4: of the low halves of the bytes, and of the high ones."""
    return _dot((word >> 4) & 0x0F0F0F0F, high, _dot(word & 0x0F0F0F0F, low, total))


@triton.jit
def _unbiased(total):
    # Below 2^22 in magnitude, so that the sum with MAGIC_BITS is the pattern of MAGIC plus it.
    return total.to(tl.float32, bitcast=True) - MAGIC


@triton.jit
def product(
    words, more, s, more_s, z, ss, zs, q0, q1, q2, q3, q4, q5, q6, q7, x_scale, x_sum, empty,
    BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    """Products of blocks of weights and of activations, in fp32. ``empty`` is a tile of MAGIC_BITS."""
    s = to_float(s)
    if CODES:
        s = s * ss.to(tl.float32)
    w0, w1, w2, w3 = split4(words)
    if GROUP < 32:
        # Two groups of int8 in a block.
        w4, w5, w6, w7 = split4(more)
        total = _dot(w3, q3, _dot(w2, q2, _dot(w1, q1, _dot(w0, q0, empty))))
        second = _dot(w7, q7, _dot(w6, q6, _dot(w5, q5, _dot(w4, q4, empty))))
        more_s = to_float(more_s)
        if CODES:
            more_s = more_s * ss.to(tl.float32)
        return (_unbiased(total) * s + _unbiased(second) * more_s) * x_scale
    else:
        if BITS == 4:
            total = _dot_halves(w0, q0, q4, empty)
            total = _dot_halves(w1, q1, q5, total)
            total = _dot_halves(w2, q2, q6, total)
            total = _dot_halves(w3, q3, q7, total)
        else:
            w4, w5, w6, w7 = split4(more)
            total = _dot(w3, q3, _dot(w2, q2, _dot(w1, q1, _dot(w0, q0, empty))))
            total = _dot(w7, q7, _dot(w6, q6, _dot(w5, q5, _dot(w4, q4, total))))
        dot = _unbiased(total) * x_scale
        if OFFSET == "symmetric":
            if BITS == 4:
                dot -= 8.0 * x_sum
            return dot * s
        elif OFFSET == "zero_point":
            return (dot - to_float(z) * x_sum) * s
        elif CODES:
            return dot * s - (to_float(z) * zs.to(tl.float32)) * x_sum
        else:
            return dot * s + to_float(z) * x_sum


@triton.jit
def store_rows(
    out, bias, values, first_row, num_rows, num_tokens,
    BLOCK_N: tl.constexpr, TOKENS: tl.constexpr, HAS_BIAS: tl.constexpr, GROUPS_FIRST: tl.constexpr,
):  # fmt: skip
    """Sums a tile over its blocks and writes out [num_tokens, num_rows]."""
    row = first_row + tl.arange(0, BLOCK_N)
    token = tl.arange(0, TOKENS)
    if GROUPS_FIRST:
        sums = tl.sum(values, 0)
        row = row[:, None]
        token = token[None, :]
    else:
        sums = tl.sum(values, 2)
        row = row[None, :]
        token = token[:, None]
    inside = (row < num_rows) & (token < num_tokens)
    if HAS_BIAS:
        sums += tl.load(bias + row, mask=row < num_rows, other=0.0).to(tl.float32)
    tl.store(out + token.to(tl.int64) * num_rows + row, sums.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _resident(
    x,  # [num_tokens, K] fp16 or bf16
    qdata, scale, zero, scale_step, zero_step, bias,
    out,  # [num_tokens, num_rows]
    num_rows, num_tokens,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr, TOKENS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr, STAGES: tl.constexpr,
    GROUPS_FIRST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Programs walk over tiles of BLOCK_N weight rows. BLOCKS is K / 32, rounded up to a power of two."""
    BF16: tl.constexpr = x.dtype.element_ty == tl.bfloat16
    x = x.to(tl.pointer_type(tl.int32), bitcast=True)
    qdata = qdata.to(tl.pointer_type(tl.int32), bitcast=True)
    word = tl.arange(0, 4)[None, None, None, :]
    block = tl.arange(0, BLOCKS)
    token = tl.arange(0, TOKENS)
    if GROUPS_FIRST:
        block4 = block[:, None, None, None]
        block3 = block[:, None, None]
        token4 = token[None, None, :, None]
        empty = tl.full([BLOCKS, BLOCK_N, TOKENS], MAGIC_BITS, tl.int32)
    else:
        block4 = block[None, None, :, None]
        block3 = block[None, None, :]
        token4 = token[:, None, None, None]
        empty = tl.full([TOKENS, BLOCK_N, BLOCKS], MAGIC_BITS, tl.int32)
    first = tl.program_id(0)
    stride = tl.num_programs(0)
    inside = (token4 < num_tokens) & (block4 < K // 32)
    if not PDL:
        # Activations are asked for first: behind the weights they would come last, and all waits for them.
        t0, t1, t2, t3 = load_pairs(x, token4 * (K // 2) + (block4 * 16 + word), inside)
    if STAGES == 1:
        row = (first * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        words, more, s, more_s, z, ss, zs = load_weights(
            qdata, scale, zero, scale_step, zero_step, row[None, :, None, None], row[None, :, None], block4, block3,
            num_rows, K, BITS, GROUP, OFFSET, CODES, True,
        )  # fmt: skip
    if PDL:
        # Weights are constant: they are on their way while the kernel that writes the activations still runs.
        gdc_launch_dependents()
        gdc_wait()
        t0, t1, t2, t3 = load_pairs(x, token4 * (K // 2) + (block4 * 16 + word), inside)
    q0, q1, q2, q3, q4, q5, q6, q7, x_scale, x_sum = quantize_pairs(t0, t1, t2, t3, BF16)
    for tile in tl.range(first, tl.cdiv(num_rows, BLOCK_N), stride, num_stages=STAGES):
        # One tile ahead in registers, or as many as there are stages in shared memory.
        ahead = tile + stride if STAGES == 1 else tile
        row = (ahead * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        n_words, n_more, n_s, n_more_s, n_z, n_ss, n_zs = load_weights(
            qdata, scale, zero, scale_step, zero_step, row[None, :, None, None], row[None, :, None], block4, block3,
            num_rows, K, BITS, GROUP, OFFSET, CODES, STAGES == 1,
        )  # fmt: skip
        if STAGES > 1:
            words, more, s, more_s, z, ss, zs = n_words, n_more, n_s, n_more_s, n_z, n_ss, n_zs
        values = product(
            words, more, s, more_s, z, ss, zs, q0, q1, q2, q3, q4, q5, q6, q7, x_scale, x_sum, empty,
            BITS, GROUP, OFFSET, CODES,
        )  # fmt: skip
        store_rows(out, bias, values, tile * BLOCK_N, num_rows, num_tokens, BLOCK_N, TOKENS, HAS_BIAS, GROUPS_FIRST)
        if STAGES == 1:
            words, more, s, more_s, z, ss, zs = n_words, n_more, n_s, n_more_s, n_z, n_ss, n_zs


@triton.jit
def resident_kernel(
    x,  # [num_tokens, K] fp16 or bf16
    qdata, scale, zero, scale_step, zero_step, bias,
    out,  # [num_tokens, num_rows]
    num_rows, num_tokens,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr, TOKENS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr, STAGES: tl.constexpr,
    GROUPS_FIRST: tl.constexpr,
):  # fmt: skip
    """Programs walk over tiles of BLOCK_N weight rows; each rounds the activations once."""
    _resident(
        x, qdata, scale, zero, scale_step, zero_step, bias, out, num_rows, num_tokens, K, BITS, GROUP, OFFSET,
        CODES, HAS_BIAS, TOKENS, BLOCK_N, BLOCKS, STAGES, GROUPS_FIRST, False,
    )  # fmt: skip


@triton.jit
def resident_pdl(
    x,  # [num_tokens, K] fp16 or bf16
    qdata, scale, zero, scale_step, zero_step, bias,
    out,  # [num_tokens, num_rows]
    num_rows, num_tokens,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr, TOKENS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr, STAGES: tl.constexpr,
    GROUPS_FIRST: tl.constexpr,
):  # fmt: skip
    """Like ``resident_kernel``, and may be launched while the kernel in front of it runs, if that writes no weights."""
    _resident(
        x, qdata, scale, zero, scale_step, zero_step, bias, out, num_rows, num_tokens, K, BITS, GROUP, OFFSET,
        CODES, HAS_BIAS, TOKENS, BLOCK_N, BLOCKS, STAGES, GROUPS_FIRST, True,
    )  # fmt: skip


@triton.jit
def _stepped(
    x,  # [num_tokens, K] fp16 or bf16, or int8 if QUANTIZED
    x_scale, x_sum,  # [num_tokens, K / 32] fp32 if QUANTIZED
    qdata, scale, zero, scale_step, zero_step, bias,
    out,  # [num_tokens, num_rows]
    num_rows, num_tokens,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr, QUANTIZED: tl.constexpr, TOKENS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCKS: tl.constexpr, STAGES: tl.constexpr,
    GROUPS_FIRST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A program computes BLOCK_N weight rows, BLOCKS blocks of 32 at a time."""
    BF16: tl.constexpr = x.dtype.element_ty == tl.bfloat16
    x = x.to(tl.pointer_type(tl.int32), bitcast=True)
    qdata = qdata.to(tl.pointer_type(tl.int32), bitcast=True)
    word = tl.arange(0, 4)[None, None, None, :]
    token = tl.arange(0, TOKENS)
    first_row = tl.program_id(0) * BLOCK_N
    row = (first_row + tl.arange(0, BLOCK_N)).to(tl.int64)
    if GROUPS_FIRST:
        block4 = tl.arange(0, BLOCKS)[:, None, None, None]
        block3 = tl.arange(0, BLOCKS)[:, None, None]
        token4 = token[None, None, :, None]
        token3 = token[None, None, :]
        values = tl.zeros([BLOCKS, BLOCK_N, TOKENS], tl.float32)
    else:
        block4 = tl.arange(0, BLOCKS)[None, None, :, None]
        block3 = tl.arange(0, BLOCKS)[None, None, :]
        token4 = token[:, None, None, None]
        token3 = token[:, None, None]
        values = tl.zeros([TOKENS, BLOCK_N, BLOCKS], tl.float32)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    for start in tl.range(0, K // 32, BLOCKS, num_stages=STAGES):
        b4 = start + block4
        b3 = start + block3
        inside4 = (token4 < num_tokens) & (b4 < K // 32)
        words, more, s, more_s, z, ss, zs = load_weights(
            qdata, scale, zero, scale_step, zero_step, row[None, :, None, None], row[None, :, None], b4, b3,
            num_rows, K, BITS, GROUP, OFFSET, CODES, STAGES == 1,
        )  # fmt: skip
        if QUANTIZED:
            q0, q1, q2, q3, q4, q5, q6, q7, xs, xt = load_quantized(
                x, x_scale, x_sum, token4, token3, b4, b3, num_tokens, K
            )
        else:
            t0, t1, t2, t3 = load_pairs(x, token4 * (K // 2) + (b4 * 16 + word), inside4)
            q0, q1, q2, q3, q4, q5, q6, q7, xs, xt = quantize_pairs(t0, t1, t2, t3, BF16)
        empty = tl.full(values.shape, MAGIC_BITS, tl.int32)
        values += product(
            words, more, s, more_s, z, ss, zs, q0, q1, q2, q3, q4, q5, q6, q7, xs, xt, empty,
            BITS, GROUP, OFFSET, CODES,
        )  # fmt: skip
    store_rows(out, bias, values, first_row, num_rows, num_tokens, BLOCK_N, TOKENS, HAS_BIAS, GROUPS_FIRST)


@triton.jit
def stepped_kernel(
    x,  # [num_tokens, K] fp16 or bf16, or int8 if QUANTIZED
    x_scale, x_sum,  # [num_tokens, K / 32] fp32 if QUANTIZED
    qdata, scale, zero, scale_step, zero_step, bias,
    out,  # [num_tokens, num_rows]
    num_rows, num_tokens,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr, QUANTIZED: tl.constexpr, TOKENS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCKS: tl.constexpr, STAGES: tl.constexpr,
    GROUPS_FIRST: tl.constexpr,
):  # fmt: skip
    """A program computes BLOCK_N weight rows."""
    _stepped(
        x, x_scale, x_sum, qdata, scale, zero, scale_step, zero_step, bias, out, num_rows, num_tokens, K, BITS,
        GROUP, OFFSET, CODES, HAS_BIAS, QUANTIZED, TOKENS, BLOCK_N, BLOCKS, STAGES, GROUPS_FIRST, False,
    )  # fmt: skip


@triton.jit
def stepped_pdl(
    x,  # [num_tokens, K] fp16 or bf16, or int8 if QUANTIZED
    x_scale, x_sum,  # [num_tokens, K / 32] fp32 if QUANTIZED
    qdata, scale, zero, scale_step, zero_step, bias,
    out,  # [num_tokens, num_rows]
    num_rows, num_tokens,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr, QUANTIZED: tl.constexpr, TOKENS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCKS: tl.constexpr, STAGES: tl.constexpr,
    GROUPS_FIRST: tl.constexpr,
):  # fmt: skip
    """Like ``stepped_kernel``, and may be launched while the kernel in front of it runs, if that writes no weights."""
    _stepped(
        x, x_scale, x_sum, qdata, scale, zero, scale_step, zero_step, bias, out, num_rows, num_tokens, K, BITS,
        GROUP, OFFSET, CODES, HAS_BIAS, QUANTIZED, TOKENS, BLOCK_N, BLOCKS, STAGES, GROUPS_FIRST, True,
    )  # fmt: skip

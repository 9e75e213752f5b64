"""What products of few tokens do with a tile of weight rows: loads, products with blocks of activations, stores."""

from __future__ import annotations

import triton
import triton.language as tl

from etcuda.kernels.activations.triton.gate import activate
from etcuda.kernels.common.blocks import MAGIC, dp4a, split4, to_float


@triton.jit
def load_weights(
    qdata, scale, zero, scale_step, zero_step, row4, row3, block4, block3, out_features,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, SCALE_CODES: tl.constexpr,
    PIN: tl.constexpr,
):  # fmt: skip
    """Tiles of words and what scales them, as stored; absent components repeat another.

    Returns:
        The first four words of each block, of int8 also the other four; scale, of groups of 16 also the second group's;
        zero; steps of both.
    """
    BLOCKS: tl.constexpr = K // 32
    ROW: tl.constexpr = K * BITS // 32
    inside4 = (row4 < out_features) & (block4 < BLOCKS)
    inside3 = (row3 < out_features) & (block3 < BLOCKS)
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
    if SCALE_CODES:
        ss = tl.load(scale_step + step, mask=inside3, other=0, eviction_policy="evict_first")
        if OFFSET == "minimum":
            zs = tl.load(zero_step + step, mask=inside3, other=0, eviction_policy="evict_first")
    return words, more, s, more_s, z, ss, zs


@triton.jit
def _dot(word, q, total):
    word, q = tl.broadcast(word, q)
    return dp4a(word, q, total)


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
    BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, SCALE_CODES: tl.constexpr,
):  # fmt: skip
    """Products of blocks of weights and of activations, in fp32. ``empty`` is a tile of MAGIC_BITS."""
    s = to_float(s)
    if SCALE_CODES:
        s = s * ss.to(tl.float32)
    w0, w1, w2, w3 = split4(words)
    if GROUP < 32:
        # Two groups of int8 in a block.
        w4, w5, w6, w7 = split4(more)
        total = _dot(w3, q3, _dot(w2, q2, _dot(w1, q1, _dot(w0, q0, empty))))
        second = _dot(w7, q7, _dot(w6, q6, _dot(w5, q5, _dot(w4, q4, empty))))
        more_s = to_float(more_s)
        if SCALE_CODES:
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
        elif SCALE_CODES:
            return dot * s - (to_float(z) * zs.to(tl.float32)) * x_sum
        else:
            return dot * s + to_float(z) * x_sum


@triton.jit
def _row_sums(bias, values, row, out_features, HAS_BIAS: tl.constexpr, GROUPS_FIRST: tl.constexpr):
    """Sums of a tile over its blocks, and what is added to them."""
    sums = tl.sum(values, 0) if GROUPS_FIRST else tl.sum(values, 2)
    if HAS_BIAS:
        sums += tl.load(bias + row, mask=row < out_features, other=0.0).to(tl.float32)
    return sums


@triton.jit
def store_rows(
    out, bias, values, more, first_row, out_features, num_tokens,
    BLOCK_N: tl.constexpr, TOKENS: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    GROUPS_FIRST: tl.constexpr,
):  # fmt: skip
    """Sums a tile over its blocks and writes out [num_tokens, out_features]; with an activation that of the sums times
    those of ``more``."""
    DTYPE: tl.constexpr = out.dtype.element_ty
    row = first_row + tl.arange(0, BLOCK_N)
    token = tl.arange(0, TOKENS)
    if GROUPS_FIRST:
        row = row[:, None]
        token = token[None, :]
    else:
        row = row[None, :]
        token = token[:, None]
    result = _row_sums(bias, values, row, out_features, HAS_BIAS, GROUPS_FIRST).to(DTYPE)
    if ACTIVATION != "none":
        up = _row_sums(bias + out_features, more, row, out_features, HAS_BIAS, GROUPS_FIRST).to(DTYPE)
        # Rounded where a product, an activation and a multiplication one after another round.
        gate = activate(result.to(tl.float32), ACTIVATION).to(DTYPE).to(tl.float32)
        result = (gate * up.to(tl.float32)).to(DTYPE)
    inside = (row < out_features) & (token < num_tokens)
    tl.store(out + token.to(tl.int64) * out_features + row, result, mask=inside)

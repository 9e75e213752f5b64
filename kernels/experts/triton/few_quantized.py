"""Experts of few tokens, weights of int4 or int8: activations are quantized to int8, products are of bytes.

Two kernels. ``up_kernel``: a CTA computes some rows of the gate and of the other half of one chosen expert, and the
gate's activation. ``down_kernel``: a CTA computes some rows of the result of a token, for all its experts: their blocks
along K lie side by side, so that the sum over a row is the weighted sum over experts, in a fixed order.

In ``*_pdl`` the first kernel waits for the one in front of it, which chose the experts, before it lets the next start.
So the second one may read which experts there are, and load their weights, while the first one still runs.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from etcuda.kernels.common.blocks import MAGIC_BITS, load_pairs, quantize_pairs
from etcuda.kernels.experts.triton.bias import weighted_biases
from etcuda.kernels.experts.triton.gate import gated
from etcuda.kernels.linear.triton.matvec import load_weights, product

# More than there are rows in all experts: loads are bounded by K alone.
_MANY = tl.constexpr(1 << 60)


@triton.jit
def _up(
    x,  # [num_tokens, K] fp16 or bf16
    indices,  # [num_tokens, TOP_K] integers
    qdata, scale, zero, scale_step, zero_step,
    bias,  # [num_experts, 2 * width]
    out,  # [num_tokens * TOP_K, width]
    width,
    K: tl.constexpr, TOP_K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr,
    SCALE_CODES: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCKS: tl.constexpr, GROUPS_FIRST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A CTA computes BLOCK_N features of one expert for one token, BLOCKS blocks of 32 at a time."""
    DTYPE: tl.constexpr = x.dtype.element_ty
    BF16: tl.constexpr = tl.bfloat16 == DTYPE
    x = x.to(tl.pointer_type(tl.int32), bitcast=True)
    qdata = qdata.to(tl.pointer_type(tl.int32), bitcast=True)
    word = tl.arange(0, 4)[None, None, None, :]
    pair = tl.program_id(0).to(tl.int64)
    token = pair // TOP_K
    if GROUPS_FIRST:
        block4 = tl.arange(0, BLOCKS)[:, None, None, None]
        block3 = tl.arange(0, BLOCKS)[:, None, None]
        first = tl.zeros([BLOCKS, BLOCK_N, 1], tl.float32)
    else:
        block4 = tl.arange(0, BLOCKS)[None, None, :, None]
        block3 = tl.arange(0, BLOCKS)[None, None, :]
        first = tl.zeros([1, BLOCK_N, BLOCKS], tl.float32)
    second = first
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    expert = tl.load(indices + pair).to(tl.int64)
    local = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = expert * (2 * width) + local
    end = expert * (2 * width) + width
    for start in range(0, K // 32, BLOCKS):
        b4 = start + block4
        b3 = start + block3
        words, more, s, more_s, z, ss, zs = load_weights(
            qdata, scale, zero, scale_step, zero_step, row[None, :, None, None], row[None, :, None], b4, b3, end,
            K, BITS, GROUP, OFFSET, SCALE_CODES, True,
        )  # fmt: skip
        u_row = row + width
        u_words, u_more, u_s, u_more_s, u_z, u_ss, u_zs = load_weights(
            qdata, scale, zero, scale_step, zero_step, u_row[None, :, None, None], u_row[None, :, None], b4, b3,
            end + width, K, BITS, GROUP, OFFSET, SCALE_CODES, True,
        )  # fmt: skip
        t0, t1, t2, t3 = load_pairs(x, token * (K // 2) + (b4 * 16 + word), b4 < K // 32)
        q0, q1, q2, q3, q4, q5, q6, q7, xs, xt = quantize_pairs(t0, t1, t2, t3, BF16)
        empty = tl.full(first.shape, MAGIC_BITS, tl.int32)
        first += product(
            words, more, s, more_s, z, ss, zs, q0, q1, q2, q3, q4, q5, q6, q7, xs, xt, empty,
            BITS, GROUP, OFFSET, SCALE_CODES,
        )  # fmt: skip
        second += product(
            u_words, u_more, u_s, u_more_s, u_z, u_ss, u_zs, q0, q1, q2, q3, q4, q5, q6, q7, xs, xt, empty,
            BITS, GROUP, OFFSET, SCALE_CODES,
        )  # fmt: skip
    gate = tl.reshape(tl.sum(first, 0 if GROUPS_FIRST else 2), [BLOCK_N])
    up = tl.reshape(tl.sum(second, 0 if GROUPS_FIRST else 2), [BLOCK_N])
    if HAS_BIAS:
        gate += tl.load(bias + row, mask=local < width, other=0.0).to(tl.float32)
        up += tl.load(bias + width + row, mask=local < width, other=0.0).to(tl.float32)
    tl.store(out + pair * width + local, gated(gate, up, ACTIVATION, DTYPE), mask=local < width)


@triton.jit
def up_kernel(
    x,  # [num_tokens, K] fp16 or bf16
    indices,  # [num_tokens, TOP_K] integers
    qdata, scale, zero, scale_step, zero_step,
    bias,  # [num_experts, 2 * width]
    out,  # [num_tokens * TOP_K, width]
    width,
    K: tl.constexpr, TOP_K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr,
    SCALE_CODES: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCKS: tl.constexpr, GROUPS_FIRST: tl.constexpr,
):  # fmt: skip
    """activation(gate) * up of the chosen experts; grid: (tokens * TOP_K, tiles of features)."""
    _up(
        x, indices, qdata, scale, zero, scale_step, zero_step, bias, out, width, K, TOP_K, BITS, GROUP, OFFSET,
        SCALE_CODES, HAS_BIAS, ACTIVATION, BLOCK_N, BLOCKS, GROUPS_FIRST, False,
    )  # fmt: skip


@triton.jit
def up_pdl(
    x,  # [num_tokens, K] fp16 or bf16
    indices,  # [num_tokens, TOP_K] integers
    qdata, scale, zero, scale_step, zero_step,
    bias,  # [num_experts, 2 * width]
    out,  # [num_tokens * TOP_K, width]
    width,
    K: tl.constexpr, TOP_K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr,
    SCALE_CODES: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCKS: tl.constexpr, GROUPS_FIRST: tl.constexpr,
):  # fmt: skip
    """``up_kernel`` that may be launched while the kernel in front of it runs."""
    _up(
        x, indices, qdata, scale, zero, scale_step, zero_step, bias, out, width, K, TOP_K, BITS, GROUP, OFFSET,
        SCALE_CODES, HAS_BIAS, ACTIVATION, BLOCK_N, BLOCKS, GROUPS_FIRST, True,
    )  # fmt: skip


@triton.jit
def _load_down(
    indices, qdata, scale, zero, scale_step, zero_step, row, token, b4, b3, out_features,
    K: tl.constexpr, TOP_K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr,
    SCALE_CODES: tl.constexpr,
):  # fmt: skip
    """Weights of the chosen experts, blocks of one after those of the other; behind the last one zeros."""
    PER: tl.constexpr = K // 32
    inside4 = b4 < TOP_K * PER
    inside3 = b3 < TOP_K * PER
    # Past the first level of cache: another kernel may still run that was launched before the experts were chosen.
    expert4 = tl.load(indices + token * TOP_K + b4 // PER, mask=inside4, other=0, cache_modifier=".cg").to(tl.int64)
    expert3 = tl.load(indices + token * TOP_K + b3 // PER, mask=inside3, other=0, cache_modifier=".cg").to(tl.int64)
    return load_weights(
        qdata, scale, zero, scale_step, zero_step, expert4 * out_features + row[None, :, None, None],
        expert3 * out_features + row[None, :, None], tl.where(inside4, b4 % PER, PER), tl.where(inside3, b3 % PER, PER),
        _MANY, K, BITS, GROUP, OFFSET, SCALE_CODES, True,
    )  # fmt: skip


@triton.jit
def _down(
    x,  # [num_tokens * TOP_K, K] fp16 or bf16
    indices,  # [num_tokens, TOP_K] integers
    routing,  # [num_tokens, TOP_K] floating
    qdata, scale, zero, scale_step, zero_step,
    bias,  # [num_experts, out_features]
    out,  # [num_tokens, out_features]
    out_features,
    K: tl.constexpr, TOP_K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr,
    SCALE_CODES: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr,
    GROUPS_FIRST: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """A CTA computes BLOCK_N features of a token, BLOCKS blocks of 32 of its experts at a time."""
    PER: tl.constexpr = K // 32
    BF16: tl.constexpr = x.dtype.element_ty == tl.bfloat16
    x = x.to(tl.pointer_type(tl.int32), bitcast=True)
    qdata = qdata.to(tl.pointer_type(tl.int32), bitcast=True)
    word = tl.arange(0, 4)[None, None, None, :]
    token = tl.program_id(0).to(tl.int64)
    if GROUPS_FIRST:
        block4 = tl.arange(0, BLOCKS)[:, None, None, None]
        block3 = tl.arange(0, BLOCKS)[:, None, None]
        values = tl.zeros([BLOCKS, BLOCK_N, 1], tl.float32)
    else:
        block4 = tl.arange(0, BLOCKS)[None, None, :, None]
        block3 = tl.arange(0, BLOCKS)[None, None, :]
        values = tl.zeros([1, BLOCK_N, BLOCKS], tl.float32)
    local = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows behind the last one repeat it: what they give is not stored.
    row = tl.minimum(local, out_features - 1)
    words, more, s, more_s, z, ss, zs = _load_down(
        indices, qdata, scale, zero, scale_step, zero_step, row, token, block4, block3, out_features,
        K, TOP_K, BITS, GROUP, OFFSET, SCALE_CODES,
    )  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    for start in range(0, TOP_K * PER, BLOCKS):
        b4 = start + block4
        b3 = start + block3
        t0, t1, t2, t3 = load_pairs(x, token * (TOP_K * K // 2) + (b4 * 16 + word), b4 < TOP_K * PER)
        share = tl.load(routing + token * TOP_K + b3 // PER, mask=b3 < TOP_K * PER, other=0.0).to(tl.float32)
        if TOP_K * PER > BLOCKS:
            n_words, n_more, n_s, n_more_s, n_z, n_ss, n_zs = _load_down(
                indices, qdata, scale, zero, scale_step, zero_step, row, token, b4 + BLOCKS, b3 + BLOCKS, out_features,
                K, TOP_K, BITS, GROUP, OFFSET, SCALE_CODES,
            )  # fmt: skip
        q0, q1, q2, q3, q4, q5, q6, q7, xs, xt = quantize_pairs(t0, t1, t2, t3, BF16)
        empty = tl.full(values.shape, MAGIC_BITS, tl.int32)
        values += product(
            words, more, s, more_s, z, ss, zs, q0, q1, q2, q3, q4, q5, q6, q7, xs * share, xt * share, empty,
            BITS, GROUP, OFFSET, SCALE_CODES,
        )  # fmt: skip
        if TOP_K * PER > BLOCKS:
            words, more, s, more_s, z, ss, zs = n_words, n_more, n_s, n_more_s, n_z, n_ss, n_zs
    sums = tl.reshape(tl.sum(values, 0 if GROUPS_FIRST else 2), [BLOCK_N])
    if HAS_BIAS:
        sums += weighted_biases(indices, routing, bias, token, row, out_features, TOP_K)
    tl.store(out + token * out_features + local, sums.to(out.dtype.element_ty), mask=local < out_features)


@triton.jit
def down_kernel(
    x,  # [num_tokens * TOP_K, K] fp16 or bf16
    indices,  # [num_tokens, TOP_K] integers
    routing,  # [num_tokens, TOP_K] floating
    qdata, scale, zero, scale_step, zero_step,
    bias,  # [num_experts, out_features]
    out,  # [num_tokens, out_features]
    out_features,
    K: tl.constexpr, TOP_K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr,
    SCALE_CODES: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr,
    GROUPS_FIRST: tl.constexpr,
):  # fmt: skip
    """The weighted sum of the experts' products; grid: (tokens, tiles of features)."""
    _down(
        x, indices, routing, qdata, scale, zero, scale_step, zero_step, bias, out, out_features, K, TOP_K, BITS, GROUP,
        OFFSET, SCALE_CODES, HAS_BIAS, BLOCK_N, BLOCKS, GROUPS_FIRST, False,
    )  # fmt: skip


@triton.jit
def down_pdl(
    x,  # [num_tokens * TOP_K, K] fp16 or bf16
    indices,  # [num_tokens, TOP_K] integers
    routing,  # [num_tokens, TOP_K] floating
    qdata, scale, zero, scale_step, zero_step,
    bias,  # [num_experts, out_features]
    out,  # [num_tokens, out_features]
    out_features,
    K: tl.constexpr, TOP_K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr,
    SCALE_CODES: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr,
    GROUPS_FIRST: tl.constexpr,
):  # fmt: skip
    """``down_kernel`` that may be launched while ``up_pdl`` runs, if that is in front of it."""
    _down(
        x, indices, routing, qdata, scale, zero, scale_step, zero_step, bias, out, out_features, K, TOP_K, BITS, GROUP,
        OFFSET, SCALE_CODES, HAS_BIAS, BLOCK_N, BLOCKS, GROUPS_FIRST, True,
    )  # fmt: skip

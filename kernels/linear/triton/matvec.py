"""Products with up to eight tokens: int8 activations, int4 or int8 weights, integer dot products of four bytes.

Two kernels. In ``resident_kernel`` each CTA quantizes all activations of a token once, keeps them in registers and
walks over tiles of weight rows. In ``stepped_kernel`` a CTA takes one tile of weight rows and walks along K; it
quantizes activations on the way, or loads quantized ones. In ``*_pdl`` (programmatic dependent launch) a CTA issues
its loads of weights first, and then waits for the kernel in front of it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from etcuda.kernels.common.blocks import MAGIC_BITS, load_pairs, load_quantized, quantize_pairs
from etcuda.kernels.linear.triton.weight_rows import load_weights, product, store_rows


@triton.jit
def _resident(
    x,  # [num_tokens, K] fp16 or bf16
    qdata, scale, zero, scale_step, zero_step, bias,
    out,  # [num_tokens, out_features]
    out_features, num_tokens,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, SCALE_CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, TOKENS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCKS: tl.constexpr, STAGES: tl.constexpr, GROUPS_FIRST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """CTAs walk over tiles of BLOCK_N weight rows. BLOCKS is K / 32, rounded up to a power of two."""
    BF16: tl.constexpr = x.dtype.element_ty == tl.bfloat16
    GATED: tl.constexpr = ACTIVATION != "none"
    # Of the weight: with an activation first the gate's rows, then as many more.
    num_rows = 2 * out_features if GATED else out_features
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
        # Activations are loaded first: behind the weights they would come last, and everything waits for them.
        t0, t1, t2, t3 = load_pairs(x, token4 * (K // 2) + (block4 * 16 + word), inside)
    if STAGES == 1:
        row = (first * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        words, more, s, more_s, z, ss, zs = load_weights(
            qdata, scale, zero, scale_step, zero_step, row[None, :, None, None], row[None, :, None], block4, block3,
            num_rows, K, BITS, GROUP, OFFSET, SCALE_CODES, True,
        )  # fmt: skip
        if GATED:
            row += out_features
            u_words, u_more, u_s, u_more_s, u_z, u_ss, u_zs = load_weights(
                qdata, scale, zero, scale_step, zero_step, row[None, :, None, None], row[None, :, None], block4, block3,
                num_rows, K, BITS, GROUP, OFFSET, SCALE_CODES, True,
            )  # fmt: skip
    if PDL:
        # Weights are constant: their loads are in flight while the kernel that writes the activations still runs.
        gdc_launch_dependents()
        gdc_wait()
        t0, t1, t2, t3 = load_pairs(x, token4 * (K // 2) + (block4 * 16 + word), inside)
    q0, q1, q2, q3, q4, q5, q6, q7, x_scale, x_sum = quantize_pairs(t0, t1, t2, t3, BF16)
    for tile in tl.range(first, tl.cdiv(out_features, BLOCK_N), stride, num_stages=STAGES):
        # One tile ahead in registers, or as many as there are stages in shared memory.
        ahead = tile + stride if STAGES == 1 else tile
        row = (ahead * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        n_words, n_more, n_s, n_more_s, n_z, n_ss, n_zs = load_weights(
            qdata, scale, zero, scale_step, zero_step, row[None, :, None, None], row[None, :, None], block4, block3,
            num_rows, K, BITS, GROUP, OFFSET, SCALE_CODES, STAGES == 1,
        )  # fmt: skip
        if STAGES > 1:
            words, more, s, more_s, z, ss, zs = n_words, n_more, n_s, n_more_s, n_z, n_ss, n_zs
        values = product(
            words, more, s, more_s, z, ss, zs, q0, q1, q2, q3, q4, q5, q6, q7, x_scale, x_sum, empty,
            BITS, GROUP, OFFSET, SCALE_CODES,
        )  # fmt: skip
        ups = values
        if GATED:
            row += out_features
            m_words, m_more, m_s, m_more_s, m_z, m_ss, m_zs = load_weights(
                qdata, scale, zero, scale_step, zero_step, row[None, :, None, None], row[None, :, None], block4, block3,
                num_rows, K, BITS, GROUP, OFFSET, SCALE_CODES, STAGES == 1,
            )  # fmt: skip
            if STAGES > 1:
                u_words, u_more, u_s, u_more_s, u_z, u_ss, u_zs = m_words, m_more, m_s, m_more_s, m_z, m_ss, m_zs
            ups = product(
                u_words, u_more, u_s, u_more_s, u_z, u_ss, u_zs, q0, q1, q2, q3, q4, q5, q6, q7, x_scale, x_sum, empty,
                BITS, GROUP, OFFSET, SCALE_CODES,
            )  # fmt: skip
        store_rows(
            out, bias, values, ups, tile * BLOCK_N, out_features, num_tokens, BLOCK_N, TOKENS, HAS_BIAS, ACTIVATION,
            GROUPS_FIRST,
        )  # fmt: skip
        if STAGES == 1:
            words, more, s, more_s, z, ss, zs = n_words, n_more, n_s, n_more_s, n_z, n_ss, n_zs
            if GATED:
                u_words, u_more, u_s, u_more_s, u_z, u_ss, u_zs = m_words, m_more, m_s, m_more_s, m_z, m_ss, m_zs


@triton.jit
def resident_kernel(
    x,  # [num_tokens, K] fp16 or bf16
    qdata, scale, zero, scale_step, zero_step, bias,
    out,  # [num_tokens, out_features]
    out_features, num_tokens,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, SCALE_CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, TOKENS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCKS: tl.constexpr, STAGES: tl.constexpr, GROUPS_FIRST: tl.constexpr,
):  # fmt: skip
    """CTAs walk over tiles of BLOCK_N weight rows; each quantizes the activations once."""
    _resident(
        x, qdata, scale, zero, scale_step, zero_step, bias, out, out_features, num_tokens, K, BITS, GROUP, OFFSET,
        SCALE_CODES, HAS_BIAS, ACTIVATION, TOKENS, BLOCK_N, BLOCKS, STAGES, GROUPS_FIRST, False,
    )  # fmt: skip


@triton.jit
def resident_pdl(
    x,  # [num_tokens, K] fp16 or bf16
    qdata, scale, zero, scale_step, zero_step, bias,
    out,  # [num_tokens, out_features]
    out_features, num_tokens,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, SCALE_CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, TOKENS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCKS: tl.constexpr, STAGES: tl.constexpr, GROUPS_FIRST: tl.constexpr,
):  # fmt: skip
    """Like ``resident_kernel``, and may be launched while the kernel in front of it runs, if that writes no weights."""
    _resident(
        x, qdata, scale, zero, scale_step, zero_step, bias, out, out_features, num_tokens, K, BITS, GROUP, OFFSET,
        SCALE_CODES, HAS_BIAS, ACTIVATION, TOKENS, BLOCK_N, BLOCKS, STAGES, GROUPS_FIRST, True,
    )  # fmt: skip


@triton.jit
def _load_activations(
    x, x_scale, x_sum, token4, token3, block4, block3, word, num_tokens,
    K: tl.constexpr, QUANTIZED: tl.constexpr, BF16: tl.constexpr,
):  # fmt: skip
    """Activations of a step, quantized before or now; returns what ``quantize_pairs`` does."""
    if QUANTIZED:
        return load_quantized(x, x_scale, x_sum, token4, token3, block4, block3, num_tokens, K)
    else:
        inside = (token4 < num_tokens) & (block4 < K // 32)
        t0, t1, t2, t3 = load_pairs(x, token4 * (K // 2) + (block4 * 16 + word), inside)
        return quantize_pairs(t0, t1, t2, t3, BF16)


@triton.jit
def _stepped(
    x,  # [num_tokens, K] fp16 or bf16, or int8 if QUANTIZED
    x_scale, x_sum,  # [num_tokens, K / 32] fp32 if QUANTIZED
    qdata, scale, zero, scale_step, zero_step, bias,
    out,  # [num_tokens, out_features]
    out_features, num_tokens,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, SCALE_CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, QUANTIZED: tl.constexpr, TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr, STAGES: tl.constexpr, GROUPS_FIRST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A CTA computes BLOCK_N weight rows, BLOCKS blocks of 32 at a time."""
    BF16: tl.constexpr = x.dtype.element_ty == tl.bfloat16
    GATED: tl.constexpr = ACTIVATION != "none"
    num_rows = 2 * out_features if GATED else out_features
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
    ups = values
    FIRST: tl.constexpr = PDL and STAGES == 1
    if FIRST:
        # Weights are constant: those of the first step are on their way while the kernel in front still runs.
        words, more, s, more_s, z, ss, zs = load_weights(
            qdata, scale, zero, scale_step, zero_step, row[None, :, None, None], row[None, :, None], block4, block3,
            num_rows, K, BITS, GROUP, OFFSET, SCALE_CODES, True,
        )  # fmt: skip
        if GATED:
            other = row + out_features
            u_words, u_more, u_s, u_more_s, u_z, u_ss, u_zs = load_weights(
                qdata, scale, zero, scale_step, zero_step, other[None, :, None, None], other[None, :, None], block4,
                block3, num_rows, K, BITS, GROUP, OFFSET, SCALE_CODES, True,
            )  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    empty = tl.full(values.shape, MAGIC_BITS, tl.int32)
    if FIRST:
        q0, q1, q2, q3, q4, q5, q6, q7, xs, xt = _load_activations(
            x, x_scale, x_sum, token4, token3, block4, block3, word, num_tokens, K, QUANTIZED, BF16
        )
        values += product(
            words, more, s, more_s, z, ss, zs, q0, q1, q2, q3, q4, q5, q6, q7, xs, xt, empty,
            BITS, GROUP, OFFSET, SCALE_CODES,
        )  # fmt: skip
        if GATED:
            ups += product(
                u_words, u_more, u_s, u_more_s, u_z, u_ss, u_zs, q0, q1, q2, q3, q4, q5, q6, q7, xs, xt, empty,
                BITS, GROUP, OFFSET, SCALE_CODES,
            )  # fmt: skip
    for start in tl.range(BLOCKS if FIRST else 0, K // 32, BLOCKS, num_stages=STAGES):
        b4 = start + block4
        b3 = start + block3
        words, more, s, more_s, z, ss, zs = load_weights(
            qdata, scale, zero, scale_step, zero_step, row[None, :, None, None], row[None, :, None], b4, b3,
            num_rows, K, BITS, GROUP, OFFSET, SCALE_CODES, STAGES == 1,
        )  # fmt: skip
        if GATED:
            other = row + out_features
            u_words, u_more, u_s, u_more_s, u_z, u_ss, u_zs = load_weights(
                qdata, scale, zero, scale_step, zero_step, other[None, :, None, None], other[None, :, None], b4, b3,
                num_rows, K, BITS, GROUP, OFFSET, SCALE_CODES, STAGES == 1,
            )  # fmt: skip
        q0, q1, q2, q3, q4, q5, q6, q7, xs, xt = _load_activations(
            x, x_scale, x_sum, token4, token3, b4, b3, word, num_tokens, K, QUANTIZED, BF16
        )
        values += product(
            words, more, s, more_s, z, ss, zs, q0, q1, q2, q3, q4, q5, q6, q7, xs, xt, empty,
            BITS, GROUP, OFFSET, SCALE_CODES,
        )  # fmt: skip
        if GATED:
            ups += product(
                u_words, u_more, u_s, u_more_s, u_z, u_ss, u_zs, q0, q1, q2, q3, q4, q5, q6, q7, xs, xt, empty,
                BITS, GROUP, OFFSET, SCALE_CODES,
            )  # fmt: skip
    store_rows(
        out, bias, values, ups, first_row, out_features, num_tokens, BLOCK_N, TOKENS, HAS_BIAS, ACTIVATION, GROUPS_FIRST
    )


@triton.jit
def stepped_kernel(
    x,  # [num_tokens, K] fp16 or bf16, or int8 if QUANTIZED
    x_scale, x_sum,  # [num_tokens, K / 32] fp32 if QUANTIZED
    qdata, scale, zero, scale_step, zero_step, bias,
    out,  # [num_tokens, out_features]
    out_features, num_tokens,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, SCALE_CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, QUANTIZED: tl.constexpr, TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr, STAGES: tl.constexpr, GROUPS_FIRST: tl.constexpr,
):  # fmt: skip
    """A CTA computes BLOCK_N weight rows."""
    _stepped(
        x, x_scale, x_sum, qdata, scale, zero, scale_step, zero_step, bias, out, out_features, num_tokens, K, BITS,
        GROUP, OFFSET, SCALE_CODES, HAS_BIAS, ACTIVATION, QUANTIZED, TOKENS, BLOCK_N, BLOCKS, STAGES, GROUPS_FIRST,
        False,
    )  # fmt: skip


@triton.jit
def stepped_pdl(
    x,  # [num_tokens, K] fp16 or bf16, or int8 if QUANTIZED
    x_scale, x_sum,  # [num_tokens, K / 32] fp32 if QUANTIZED
    qdata, scale, zero, scale_step, zero_step, bias,
    out,  # [num_tokens, out_features]
    out_features, num_tokens,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, SCALE_CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, QUANTIZED: tl.constexpr, TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr, STAGES: tl.constexpr, GROUPS_FIRST: tl.constexpr,
):  # fmt: skip
    """Like ``stepped_kernel``, and may be launched while the kernel in front of it runs, if that writes no weights."""
    _stepped(
        x, x_scale, x_sum, qdata, scale, zero, scale_step, zero_step, bias, out, out_features, num_tokens, K, BITS,
        GROUP, OFFSET, SCALE_CODES, HAS_BIAS, ACTIVATION, QUANTIZED, TOKENS, BLOCK_N, BLOCKS, STAGES, GROUPS_FIRST,
        True,
    )  # fmt: skip

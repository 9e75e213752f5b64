"""Experts of few tokens, weights as they are: bf16, fp16 or fp32. Two kernels, as in few_quantized.py."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from etcuda.kernels.dense.triton.matvec import add_products, load_rows, load_weights
from etcuda.kernels.experts.triton.bias import weighted_biases
from etcuda.kernels.experts.triton.gate import gated


@triton.jit
def _up(
    x,  # [num_tokens, K]
    indices,  # [num_tokens, TOP_K] integers
    weight,  # [num_experts, 2 * width, K]
    bias,  # [num_experts, 2 * width]
    out,  # [num_tokens * TOP_K, width]
    width,
    K: tl.constexpr, TOP_K: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """A CTA computes BLOCK_N features of one expert for one token, BLOCK_K columns at a time."""
    DTYPE: tl.constexpr = x.dtype.element_ty
    column = tl.arange(0, BLOCK_K)[None, None, :]
    token = tl.zeros([1, 1, 1], tl.int32)
    pair = tl.program_id(0).to(tl.int64)
    x += pair // TOP_K * K
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    first_row = tl.load(indices + pair).to(tl.int64) * 2 * width
    weight += first_row * K
    local = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = local.to(tl.int64)[None, :, None]
    first, second = load_weights(weight, row, column, True, width, K, True)
    sums = tl.zeros([1, BLOCK_N, BLOCK_K // 8], tl.float32)
    more = sums
    for start in range(0, K, BLOCK_K):
        rows = load_rows(x, token, start + column, 1, K)
        if K > BLOCK_K:
            ahead = start + BLOCK_K
            next_first, next_second = load_weights(weight, row, ahead + column, ahead < K, width, K, True)
        sums = add_products(sums, first, rows)
        more = add_products(more, second, rows)
        if K > BLOCK_K:
            first, second = next_first, next_second
    gate = tl.reshape(tl.sum(sums, 2), [BLOCK_N])
    up = tl.reshape(tl.sum(more, 2), [BLOCK_N])
    if HAS_BIAS:
        bias += first_row + local
        gate += tl.load(bias, mask=local < width, other=0.0).to(tl.float32)
        up += tl.load(bias + width, mask=local < width, other=0.0).to(tl.float32)
    tl.store(out + pair * width + local, gated(gate, up, ACTIVATION, DTYPE), mask=local < width)


@triton.jit
def dense_up_kernel(
    x,  # [num_tokens, K]
    indices,  # [num_tokens, TOP_K] integers
    weight,  # [num_experts, 2 * width, K]
    bias,  # [num_experts, 2 * width]
    out,  # [num_tokens * TOP_K, width]
    width,
    K: tl.constexpr, TOP_K: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """activation(gate) * up of the chosen experts; grid: (tokens * TOP_K, tiles of features)."""
    _up(x, indices, weight, bias, out, width, K, TOP_K, HAS_BIAS, ACTIVATION, BLOCK_N, BLOCK_K, False)


@triton.jit
def dense_up_pdl(
    x,  # [num_tokens, K]
    indices,  # [num_tokens, TOP_K] integers
    weight,  # [num_experts, 2 * width, K]
    bias,  # [num_experts, 2 * width]
    out,  # [num_tokens * TOP_K, width]
    width,
    K: tl.constexpr, TOP_K: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``dense_up_kernel`` that may be launched while the kernel in front of it runs."""
    _up(x, indices, weight, bias, out, width, K, TOP_K, HAS_BIAS, ACTIVATION, BLOCK_N, BLOCK_K, True)


@triton.jit
def _load_down(indices, weight, row, token, at, out_features, K: tl.constexpr, TOP_K: tl.constexpr):
    """Columns of the chosen experts' weights, [1, rows, columns], those of one after those of the other."""
    inside = at < TOP_K * K
    # Past the first level of cache: another kernel may still run that was launched before the experts were chosen.
    expert = tl.load(indices + token * TOP_K + at // K, mask=inside, other=0, cache_modifier=".cg").to(tl.int64)
    place = (expert * out_features + row) * K + at % K
    # Eight columns are of one expert, 8 being a factor of K.
    place = tl.max_contiguous(tl.multiple_of(place, [1, 1, 8]), [1, 1, 8])
    return tl.load(weight + place, mask=inside & (row >= 0), other=0.0, eviction_policy="evict_first")


@triton.jit
def _down(
    x,  # [num_tokens * TOP_K, K]
    indices,  # [num_tokens, TOP_K] integers
    routing,  # [num_tokens, TOP_K] floating
    weight,  # [num_experts, out_features, K]
    bias,  # [num_experts, out_features]
    out,  # [num_tokens, out_features]
    out_features,
    K: tl.constexpr, TOP_K: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """A CTA computes BLOCK_N features of a token, BLOCK_K columns of its experts at a time."""
    column = tl.arange(0, BLOCK_K)[None, None, :]
    token = tl.program_id(0).to(tl.int64)
    local = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows behind the last one repeat it: what they give is not stored.
    row = tl.minimum(local, out_features - 1)[None, :, None]
    weights = _load_down(indices, weight, row, token, column, out_features, K, TOP_K)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    sums = tl.zeros([1, BLOCK_N, BLOCK_K // 8], tl.float32)
    for start in range(0, TOP_K * K, BLOCK_K):
        at = start + column
        inside = at < TOP_K * K
        rows = tl.load(x + token * (TOP_K * K) + at, mask=inside, other=0.0).to(tl.float32)
        share = tl.load(routing + token * TOP_K + at // K, mask=inside, other=0.0).to(tl.float32)
        if TOP_K * K > BLOCK_K:
            ahead = _load_down(indices, weight, row, token, at + BLOCK_K, out_features, K, TOP_K)
        sums = add_products(sums, weights, rows * share)
        if TOP_K * K > BLOCK_K:
            weights = ahead
    result = tl.reshape(tl.sum(sums, 2), [BLOCK_N])
    if HAS_BIAS:
        last = tl.minimum(local, out_features - 1)
        result += weighted_biases(indices, routing, bias, token, last, out_features, TOP_K)
    tl.store(out + token * out_features + local, result.to(out.dtype.element_ty), mask=local < out_features)


@triton.jit
def dense_down_kernel(
    x,  # [num_tokens * TOP_K, K]
    indices,  # [num_tokens, TOP_K] integers
    routing,  # [num_tokens, TOP_K] floating
    weight,  # [num_experts, out_features, K]
    bias,  # [num_experts, out_features]
    out,  # [num_tokens, out_features]
    out_features,
    K: tl.constexpr, TOP_K: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The weighted sum of the experts' products; grid: (tokens, tiles of features)."""
    _down(x, indices, routing, weight, bias, out, out_features, K, TOP_K, HAS_BIAS, BLOCK_N, BLOCK_K, False)


@triton.jit
def dense_down_pdl(
    x,  # [num_tokens * TOP_K, K]
    indices,  # [num_tokens, TOP_K] integers
    routing,  # [num_tokens, TOP_K] floating
    weight,  # [num_experts, out_features, K]
    bias,  # [num_experts, out_features]
    out,  # [num_tokens, out_features]
    out_features,
    K: tl.constexpr, TOP_K: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``dense_down_kernel`` that may be launched while ``dense_up_pdl`` runs, if that is in front of it."""
    _down(x, indices, routing, weight, bias, out, out_features, K, TOP_K, HAS_BIAS, BLOCK_N, BLOCK_K, True)

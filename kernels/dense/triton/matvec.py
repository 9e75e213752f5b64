"""Products of up to eight rows with a weight as it is, bf16 or fp16: the weight goes once through the registers.

Two kernels. In ``dense_resident_kernel`` a CTA keeps all activations in registers and walks over tiles of weight rows.
In ``dense_stepped_kernel`` a CTA takes one tile of weight rows and walks along K. Either way the loads of the next tile
are in flight while a tile is multiplied. In ``*_pdl`` (programmatic dependent launch) a CTA issues the loads of its
first tile before it waits for the kernel in front of it.

Tiles have the axes tokens, rows, columns. A lane loads eight neighbouring columns, 16 bytes, and the lanes and warps of
a CTA lie along the columns: a row's sum is split over registers, lanes and warps alike whatever rows are beside it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from etcuda.kernels.activations.triton.gate import activate


@triton.jit
def load_weights(weight, row, column, ok, out_features, K: tl.constexpr, GATED: tl.constexpr):
    """A tile of the weight, [1, rows, columns], and of the rows ``out_features`` further on if it is gated."""
    inside = (row < out_features) & (column < K) & ok
    at = row * K + column
    first = tl.load(weight + at, mask=inside, other=0.0, eviction_policy="evict_first")
    second = first
    if GATED:
        offset = tl.cast(out_features, tl.int64) * K
        second = tl.load(weight + offset + at, mask=inside, other=0.0, eviction_policy="evict_first")
    return first, second


@triton.jit
def load_rows(x, token, column, num_tokens, K: tl.constexpr):
    """Activations, [tokens, 1, columns], in fp32."""
    inside = (token < num_tokens) & (column < K)
    return tl.load(x + token * K + column, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def split8(tile):
    """Every eighth column, from each of the first eight on: what one lane loaded at a time."""
    shape: tl.constexpr = tile.shape
    even, odd = tl.split(tl.reshape(tile, [shape[0], shape[1], shape[2] // 8, 2, 2, 2]))
    even0, even1 = tl.split(even)
    odd0, odd1 = tl.split(odd)
    c0, c4 = tl.split(even0)
    c2, c6 = tl.split(even1)
    c1, c5 = tl.split(odd0)
    c3, c7 = tl.split(odd1)
    return c0, c1, c2, c3, c4, c5, c6, c7


@triton.jit
def add_products(sums, weights, x):
    """Adds the products of [1, rows, columns] and [tokens, 1, columns] to [tokens, rows, columns / 8]."""
    w0, w1, w2, w3, w4, w5, w6, w7 = split8(weights.to(tl.float32))
    x0, x1, x2, x3, x4, x5, x6, x7 = split8(x)
    sums += w0 * x0
    sums += w1 * x1
    sums += w2 * x2
    sums += w3 * x3
    sums += w4 * x4
    sums += w5 * x5
    sums += w6 * x6
    sums += w7 * x7
    return sums


@triton.jit
def store_rows(
    out, bias, first, second, first_row, out_features, num_tokens,
    BLOCK_N: tl.constexpr, TOKENS: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Sums tiles over their columns, applies bias and gate, and writes out [num_tokens, out_features]."""
    DTYPE: tl.constexpr = out.dtype.element_ty
    row = (first_row + tl.arange(0, BLOCK_N))[None, :]
    token = tl.arange(0, TOKENS)[:, None]
    sums = tl.sum(first, 2)
    if HAS_BIAS:
        sums += tl.load(bias + row, mask=row < out_features, other=0.0).to(tl.float32)
    result = sums.to(DTYPE)
    if ACTIVATION != "none":
        up = tl.sum(second, 2)
        if HAS_BIAS:
            up += tl.load(bias + out_features + row, mask=row < out_features, other=0.0).to(tl.float32)
        # Rounded where a product, an activation and a multiplication one after another round.
        gate = activate(result.to(tl.float32), ACTIVATION).to(DTYPE).to(tl.float32)
        result = (gate * up.to(DTYPE).to(tl.float32)).to(DTYPE)
    inside = (row < out_features) & (token < num_tokens)
    tl.store(out + token.to(tl.int64) * out_features + row, result, mask=inside)


@triton.jit
def _resident(
    x,  # [num_tokens, K]
    weight,  # [out_features, K]; with an activation [2 * out_features, K], first the gate's rows
    bias,  # one for each row of the weight
    out,  # [num_tokens, out_features]
    out_features, num_tokens,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, TOKENS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """CTAs walk over tiles of BLOCK_N rows. BLOCK_K is at least K."""
    GATED: tl.constexpr = ACTIVATION != "none"
    column = tl.arange(0, BLOCK_K)[None, None, :]
    token = tl.arange(0, TOKENS)[:, None, None]
    tile = tl.program_id(0)
    row = (tile * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[None, :, None]
    first, second = load_weights(weight, row, column, True, out_features, K, GATED)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    rows = load_rows(x, token, column, num_tokens, K)
    for tile in range(tl.program_id(0), tl.cdiv(out_features, BLOCK_N), tl.num_programs(0)):
        row = ((tile + tl.num_programs(0)) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[None, :, None]
        next_first, next_second = load_weights(weight, row, column, True, out_features, K, GATED)
        zeros = tl.zeros([TOKENS, BLOCK_N, BLOCK_K // 8], tl.float32)
        sums = add_products(zeros, first, rows)
        more = sums
        if GATED:
            more = add_products(zeros, second, rows)
        store_rows(
            out, bias, sums, more, tile * BLOCK_N, out_features, num_tokens, BLOCK_N, TOKENS, HAS_BIAS, ACTIVATION
        )
        first, second = next_first, next_second


@triton.jit
def dense_resident_kernel(
    x,  # [num_tokens, K]
    weight,  # [out_features, K]; with an activation [2 * out_features, K], first the gate's rows
    bias,  # one for each row of the weight
    out,  # [num_tokens, out_features]
    out_features, num_tokens,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, TOKENS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """CTAs walk over tiles of BLOCK_N rows and keep the activations."""
    _resident(x, weight, bias, out, out_features, num_tokens, K, HAS_BIAS, ACTIVATION, TOKENS, BLOCK_N, BLOCK_K, False)


@triton.jit
def dense_resident_pdl(
    x,  # [num_tokens, K]
    weight,  # [out_features, K]; with an activation [2 * out_features, K], first the gate's rows
    bias,  # one for each row of the weight
    out,  # [num_tokens, out_features]
    out_features, num_tokens,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, TOKENS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``dense_resident_kernel`` that may be launched while the kernel in front runs, if that writes no weights."""
    _resident(x, weight, bias, out, out_features, num_tokens, K, HAS_BIAS, ACTIVATION, TOKENS, BLOCK_N, BLOCK_K, True)


@triton.jit
def _stepped(
    x,  # [num_tokens, K]
    weight,  # [out_features, K]; with an activation [2 * out_features, K], first the gate's rows
    bias,  # one for each row of the weight
    out,  # [num_tokens, out_features]
    out_features, num_tokens,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, TOKENS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A CTA computes BLOCK_N rows, BLOCK_K columns at a time."""
    GATED: tl.constexpr = ACTIVATION != "none"
    column = tl.arange(0, BLOCK_K)[None, None, :]
    token = tl.arange(0, TOKENS)[:, None, None]
    first_row = tl.program_id(0) * BLOCK_N
    row = (first_row + tl.arange(0, BLOCK_N)).to(tl.int64)[None, :, None]
    first, second = load_weights(weight, row, column, True, out_features, K, GATED)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    sums = tl.zeros([TOKENS, BLOCK_N, BLOCK_K // 8], tl.float32)
    more = sums
    for start in range(0, K, BLOCK_K):
        ahead = start + BLOCK_K
        next_first, next_second = load_weights(weight, row, ahead + column, ahead < K, out_features, K, GATED)
        rows = load_rows(x, token, start + column, num_tokens, K)
        sums = add_products(sums, first, rows)
        if GATED:
            more = add_products(more, second, rows)
        first, second = next_first, next_second
    store_rows(out, bias, sums, more, first_row, out_features, num_tokens, BLOCK_N, TOKENS, HAS_BIAS, ACTIVATION)


@triton.jit
def dense_stepped_kernel(
    x,  # [num_tokens, K]
    weight,  # [out_features, K]; with an activation [2 * out_features, K], first the gate's rows
    bias,  # one for each row of the weight
    out,  # [num_tokens, out_features]
    out_features, num_tokens,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, TOKENS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A CTA computes BLOCK_N rows."""
    _stepped(x, weight, bias, out, out_features, num_tokens, K, HAS_BIAS, ACTIVATION, TOKENS, BLOCK_N, BLOCK_K, False)


@triton.jit
def dense_stepped_pdl(
    x,  # [num_tokens, K]
    weight,  # [out_features, K]; with an activation [2 * out_features, K], first the gate's rows
    bias,  # one for each row of the weight
    out,  # [num_tokens, out_features]
    out_features, num_tokens,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, TOKENS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``dense_stepped_kernel`` that may be launched while the kernel in front of it runs, if that writes no weights."""
    _stepped(x, weight, bias, out, out_features, num_tokens, K, HAS_BIAS, ACTIVATION, TOKENS, BLOCK_N, BLOCK_K, True)

"""Tokens sorted by expert, and cut into tiles, on the device: two kernels, a CTA for each expert.

Rows of an expert follow each other; a tile has at most BLOCK_M rows, of one expert. Nothing is counted by atomics: the
order is that of the assignments (token * TOP_K + choice).
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _count(indices, counts, num_rows, CHUNK: tl.constexpr, PDL: tl.constexpr):
    expert = tl.program_id(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    found = tl.zeros([CHUNK], tl.int32)
    for start in range(0, num_rows, CHUNK):
        at = start + tl.arange(0, CHUNK)
        found += (tl.load(indices + at, mask=at < num_rows, other=-1) == expert).to(tl.int32)
    tl.store(counts + expert, tl.sum(found, 0))


@triton.jit
def count_kernel(indices, counts, num_rows, CHUNK: tl.constexpr):
    """How many of ``indices`` [num_rows] each expert is; grid: experts."""
    _count(indices, counts, num_rows, CHUNK, False)


@triton.jit
def count_pdl(indices, counts, num_rows, CHUNK: tl.constexpr):
    """``count_kernel`` that may be launched while the kernel in front of it runs."""
    _count(indices, counts, num_rows, CHUNK, True)


@triton.jit
def _place(
    indices, counts, order, tiles, num_rows,
    EXPERTS: tl.constexpr, PADDED: tl.constexpr, BLOCK_M: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    each = tl.arange(0, PADDED)
    all_counts = tl.load(counts + each, mask=each < EXPERTS, other=0)
    all_tiles = (all_counts + (BLOCK_M - 1)) // BLOCK_M
    before = each < expert
    first = tl.sum(tl.where(before, all_counts, 0), 0)
    first_tile = tl.sum(tl.where(before, all_tiles, 0), 0)
    count = tl.sum(tl.where(each == expert, all_counts, 0), 0)
    if expert == 0:
        tl.store(tiles, tl.sum(all_tiles, 0))
    zeros = tl.zeros([CHUNK], tl.int32)
    for start in range(0, count, BLOCK_M * CHUNK):
        number = start // BLOCK_M + tl.arange(0, CHUNK)
        tile = tiles + 4 + (first_tile + number) * 4
        inside = number * BLOCK_M < count
        tl.store(tile, zeros + expert, mask=inside)
        tl.store(tile + 1, zeros + first, mask=inside)
        tl.store(tile + 2, zeros + first + count, mask=inside)
        tl.store(tile + 3, zeros + first_tile, mask=inside)
    next_row = first
    for start in range(0, num_rows, CHUNK):
        at = start + tl.arange(0, CHUNK)
        mine = (tl.load(indices + at, mask=at < num_rows, other=-1) == expert).to(tl.int32)
        rank = tl.cumsum(mine, 0)
        tl.store(order + next_row + rank - 1, at, mask=mine > 0)
        next_row += tl.sum(mine, 0)


@triton.jit
def place_kernel(
    indices,  # [num_rows] integers
    counts,  # [EXPERTS] int32
    order,  # [num_rows] int32: the rows, sorted by expert
    tiles,  # [1 + most tiles, 4] int32: how many there are; then expert, its first row, their end, its first tile
    num_rows,
    EXPERTS: tl.constexpr, PADDED: tl.constexpr, BLOCK_M: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Sorts rows by expert and lists their tiles; grid: experts."""
    _place(indices, counts, order, tiles, num_rows, EXPERTS, PADDED, BLOCK_M, CHUNK, False)


@triton.jit
def place_pdl(
    indices,  # [num_rows] integers
    counts,  # [EXPERTS] int32
    order,  # [num_rows] int32: the rows, sorted by expert
    tiles,  # [1 + most tiles, 4] int32: how many there are; then expert, its first row, their end, its first tile
    num_rows,
    EXPERTS: tl.constexpr, PADDED: tl.constexpr, BLOCK_M: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """``place_kernel`` that may be launched while the kernel in front of it runs."""
    _place(indices, counts, order, tiles, num_rows, EXPERTS, PADDED, BLOCK_M, CHUNK, True)


@triton.jit
def _combine(
    products, routing, out, out_features, TOP_K: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < out_features
    sums = tl.zeros([BLOCK_N], tl.float32)
    for choice in tl.static_range(TOP_K):
        pair = token * TOP_K + choice
        share = tl.load(routing + pair).to(tl.float32)
        sums += share * tl.load(products + pair * out_features + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * out_features + column, sums.to(out.dtype.element_ty), mask=inside)


@triton.jit
def combine_kernel(
    products,  # [num_tokens * TOP_K, out_features]
    routing,  # [num_tokens, TOP_K] floating
    out,  # [num_tokens, out_features]
    out_features,
    TOP_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The weighted sum of a token's products; grid: (tokens, tiles of features)."""
    _combine(products, routing, out, out_features, TOP_K, BLOCK_N, False)


@triton.jit
def combine_pdl(
    products,  # [num_tokens * TOP_K, out_features]
    routing,  # [num_tokens, TOP_K] floating
    out,  # [num_tokens, out_features]
    out_features,
    TOP_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``combine_kernel`` that may be launched while the kernel in front of it runs."""
    _combine(products, routing, out, out_features, TOP_K, BLOCK_N, True)

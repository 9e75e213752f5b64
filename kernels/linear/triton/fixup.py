"""The fixup: sums the partials of tiles that several CTAs of the tensor-core product shared."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from etcuda.kernels.linear.triton.dequantize import WEIGHT_FACTOR

TOGETHER = tl.constexpr(4)


@triton.jit
def _reduce(
    factor, bias, out, partial, out_features, num_tokens, ctas,
    HAS_BIAS: tl.constexpr, STEPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, CHUNK_M: tl.constexpr,
    WIDE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Sums the partials of tiles that CTAs of ``matmul_kernel`` shared, CHUNK_M tokens of a tile per CTA.

    WIDE: shares need 64 bits, in which divisions are slow.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    tiles_m = tl.cdiv(num_tokens, BLOCK_M)
    tiles = tl.cdiv(out_features, BLOCK_N) * tiles_m
    waves = tiles // ctas
    total = (tiles - waves * ctas) * STEPS
    tile = waves * ctas + tl.program_id(0)
    begin = tl.program_id(0) * STEPS
    if WIDE:
        total = total.to(tl.int64)
        begin = begin.to(tl.int64)
    # The CTAs whose shares hold the first and the last step of this tile.
    first = ((begin + 1) * ctas - 1) // tl.maximum(total, 1)
    last = ((begin + STEPS) * ctas - 1) // tl.maximum(total, 1)
    last = tl.where(begin < total, last, first)
    if first < last:
        n = tl.arange(0, BLOCK_N)
        m = tl.program_id(1) * CHUNK_M + tl.arange(0, CHUNK_M)
        values = tl.zeros([CHUNK_M, BLOCK_N], tl.float32)
        # Several at a time: their loads are in flight together, and they are added in order.
        for start in range(first, last + 1, TOGETHER):
            for i in tl.static_range(TOGETHER):
                cta = start + i
                share = total * cta // ctas
                # More CTAs than steps: some have none.
                some = (cta <= last) & (share < total * (cta + 1) // ctas)
                slot = 2 * cta + (share < begin).to(tl.int32)
                at = partial + slot.to(tl.int64) * (BLOCK_N * BLOCK_M) + (m[:, None] * BLOCK_N + n[None, :])
                values += tl.load(at, mask=some, other=0.0)
        n += tile // tiles_m * BLOCK_N
        m += tile % tiles_m * BLOCK_M
        up = tl.load(factor + m, mask=m < num_tokens, other=0.0) * (1.0 / WEIGHT_FACTOR)
        values *= up[:, None]
        if HAS_BIAS:
            values += tl.load(bias + n, mask=n < out_features, other=0.0).to(tl.float32)[None, :]
        at = out + (m.to(tl.int64)[:, None] * out_features + n[None, :])
        tl.store(at, values.to(out.dtype.element_ty), mask=(m < num_tokens)[:, None] & (n < out_features)[None, :])


@triton.jit
def reduce_kernel(
    factor, bias, out, partial, out_features, num_tokens, ctas,
    HAS_BIAS: tl.constexpr, STEPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, CHUNK_M: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Sums the partials of shared tiles; grid: (shared tiles, BLOCK_M / CHUNK_M)."""
    _reduce(
        factor, bias, out, partial, out_features, num_tokens, ctas, HAS_BIAS, STEPS, BLOCK_N, BLOCK_M, CHUNK_M,
        WIDE, False,
    )  # fmt: skip


@triton.jit
def reduce_pdl(
    factor, bias, out, partial, out_features, num_tokens, ctas,
    HAS_BIAS: tl.constexpr, STEPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, CHUNK_M: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Like ``reduce_kernel``, and may be launched while the kernel in front of it runs."""
    _reduce(
        factor, bias, out, partial, out_features, num_tokens, ctas, HAS_BIAS, STEPS, BLOCK_N, BLOCK_M, CHUNK_M,
        WIDE, True,
    )  # fmt: skip

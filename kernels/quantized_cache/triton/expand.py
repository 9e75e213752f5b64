"""A coded cache as numbers, in front of the kernel of many rows: it would decode a key once for every tile of rows."""

from __future__ import annotations

import triton
import triton.language as tl

from etcuda.kernels.quantized_cache.triton.codes import from_bytes, from_nibbles


@triton.jit
def expand_kernel(
    codes, scale, out,  # [batch, heads, L_kv, ...], contiguous; out [batch, heads, L_kv, HEAD_DIM]
    positions, stride_pb, stride_pm, L_q, L_kv, unit,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WORDS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_N: tl.constexpr,
    ALIGNED: tl.constexpr, BOUND: tl.constexpr, WINDOW: tl.constexpr, FORMAT: tl.constexpr,
):  # fmt: skip
    """Grid: (blocks of slots, HEADS, batch). With ``BOUND`` slots that no row sees are left as they are: those behind
    the greatest position, and in front of the window of the least one."""
    b = tl.program_id(2)
    slots = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if BOUND:
        least = tl.full([1], 2147483646, tl.int32)
        greatest = tl.full([1], -1, tl.int32)
        for first in tl.range(0, L_q, 256):
            m = first + tl.arange(0, 256)
            found = tl.load(positions + b.to(tl.int64) * stride_pb + m * stride_pm, mask=m < L_q, other=0)
            pos = tl.maximum(tl.minimum(found.to(tl.int64), 2147483646), -1).to(tl.int32)
            least = tl.minimum(least, tl.min(tl.where(m < L_q, pos, 2147483646), 0))
            greatest = tl.maximum(greatest, tl.max(tl.where(m < L_q, pos, -1), 0))
        # The kernel of attention loads whole blocks of keys, and multiplies values that no row sees by 0.
        unseen = tl.program_id(0) * BLOCK_N >= (tl.max(greatest, 0) // ALIGNED + 1) * ALIGNED
        if WINDOW > 0:
            begin = tl.maximum(tl.min(least, 0) - WINDOW + 1, 0) // ALIGNED * ALIGNED
            unseen = unseen | (tl.program_id(0) * BLOCK_N + BLOCK_N <= begin)
        if unseen:
            return
    DTYPE: tl.constexpr = out.dtype.element_ty
    PARTS: tl.constexpr = HEAD_DIM // WORDS
    offs = tl.arange(0, BLOCK_W)
    ok = (slots < L_kv)[:, None] & (offs < WORDS)[None, :]
    vectors = (b.to(tl.int64) * HEADS + tl.program_id(1)) * L_kv + slots
    words = codes.to(tl.pointer_type(tl.uint16)) + vectors[:, None] * WORDS + offs[None, :]
    loaded = tl.load(words, mask=ok, other=0)
    factor = (tl.load(scale + vectors, mask=slots < L_kv, other=0.0).to(tl.float32) * unit)[:, None]
    if FORMAT == 2:
        a, b_, c, d = from_nibbles(loaded, DTYPE)
        low = tl.join((a.to(tl.float32) * factor).to(DTYPE), (c.to(tl.float32) * factor).to(DTYPE))
        high = tl.join((b_.to(tl.float32) * factor).to(DTYPE), (d.to(tl.float32) * factor).to(DTYPE))
    else:
        a, b_ = from_bytes(loaded, FORMAT, DTYPE)
        low = (a.to(tl.float32) * factor).to(DTYPE)
        high = (b_.to(tl.float32) * factor).to(DTYPE)
    # Numbers PARTS * i to PARTS * i + PARTS - 1 of word i, in order.
    numbers = tl.reshape(tl.join(low, high), [BLOCK_N, BLOCK_W * PARTS])
    column = tl.arange(0, BLOCK_W * PARTS)
    place = out + vectors[:, None] * HEAD_DIM + column[None, :]
    tl.store(place, numbers, mask=(slots < L_kv)[:, None] & (column < HEAD_DIM)[None, :])

"""Attention over a coded cache, for one query row and for many.

A CTA takes rows (query, head of the group) that share a KV head, and a range of the keys that they attend to, so that
it decodes a key for all of the rows. Codes are loaded as they are, and become numbers in registers in front of the
products. A head is computed in PARTS: word ``i`` of 16 bits has the numbers ``PARTS * i`` to ``PARTS * i + PARTS - 1``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from etcuda.kernels.attention.triton.masking import (
    finite_or_zero,
    first_and_last,
    keep_keys,
    key_length,
    key_slots,
    masked_logits,
    query_positions,
    with_sink,
)
from etcuda.kernels.quantized_cache.triton.codes import from_bytes, from_nibbles
from etcuda.kernels.quantized_cache.triton.rotate import hadamard, head_signs


@triton.jit
def tile_keys(
    kv_len, positions, stride_pb, stride_pm, b, tile, L_q, L_kv, num_splits, block_n,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, HAS_LEN: tl.constexpr,
    RING: tl.constexpr,
):  # fmt: skip
    """The keys that a tile of rows attends to: first, end, keys of a split, splits that have keys (at least 1)."""
    length = key_length(kv_len, b, L_kv, HAS_LEN, RING)
    lo = length * 0
    hi = length
    if CAUSAL != 0:
        m = (tile * BLOCK_M + tl.arange(0, BLOCK_M)) // GROUP
        pos = query_positions(positions, stride_pb, stride_pm, b, m, L_q, L_q, length, CAUSAL)
        first, last = first_and_last(pos, m, L_q, CAUSAL)
        hi = tl.maximum(tl.minimum(length, last + 1), 0)
        if WINDOW > 0:
            lo = tl.minimum(tl.maximum(first - WINDOW + 1, 0), hi) // block_n * block_n
    blocks = tl.cdiv(hi - lo, block_n)
    per = tl.maximum(tl.cdiv(blocks, num_splits), 1)
    used = tl.maximum(tl.cdiv(blocks, per), 1)
    return lo, hi, per * block_n, used


@triton.jit
def load_parts(
    words, slots, offs, n_ok, WORDS: tl.constexpr, BLOCK_W: tl.constexpr, FORMAT: tl.constexpr, DTYPE: tl.constexpr
):
    """Words of keys or values as numbers: those of each part. ``slots``, ``offs`` and ``n_ok`` are broadcast to the
    block's shape; of bytes the last two parts are none."""
    place = words + (slots * WORDS + offs)
    if WORDS == BLOCK_W:
        loaded = tl.load(place, mask=n_ok, other=0)
    else:
        loaded = tl.load(place, mask=n_ok & (offs < WORDS), other=0)
    if FORMAT == 2:
        a, b, c, d = from_nibbles(loaded, DTYPE)
    else:
        a, b = from_bytes(loaded, FORMAT, DTYPE)
        c, d = a, b
    return a, b, c, d


@triton.jit(do_not_specialize=["num_splits"])
def quantized_attention_kernel(
    q, k, k_scale, v, v_scale, out, partial, stats, mask, kv_len, positions, sinks,
    stride_qb, stride_qh, stride_qm, stride_ob, stride_oh, stride_om, stride_mb, stride_mh, stride_mm, stride_mn,
    stride_pb, stride_pm, L_q, L_kv, num_splits, qk_scale, unit,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, WORDS: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, MASK: tl.constexpr, HAS_LEN: tl.constexpr, RING: tl.constexpr, SINKS: tl.constexpr,
    SPLITS: tl.constexpr, FORMAT: tl.constexpr,
):  # fmt: skip
    """Grid: (num_splits, KV_HEADS * row tiles, batch). Codes and scales are contiguous.

    With ``SPLITS`` results go to ``partial`` [batch * KV_HEADS, num_splits, L_q * GROUP, HEAD_DIM] fp32, not
    normalised, and ``stats``, the same without the last dimension, times 2: maximum and sum, in base 2. ``unit`` is
    what a scale is multiplied by, as decoded numbers are not those that codes stand for; see ``launch.py``.
    """
    split = tl.program_id(0)
    h = tl.program_id(1) % KV_HEADS
    tile = tl.program_id(1) // KV_HEADS
    b = tl.program_id(2)
    DTYPE: tl.constexpr = q.dtype.element_ty
    qk_scale = tl.cast(qk_scale, tl.float32)
    unit = tl.cast(unit, tl.float32)
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row_m = rows // GROUP
    row_h = h * GROUP + rows % GROUP
    row_ok = rows < L_q * GROUP
    PARTS: tl.constexpr = HEAD_DIM // WORDS
    offs = tl.arange(0, BLOCK_W)
    rows_ok = row_ok[:, None] & (offs < WORDS)[None, :]
    batch = b.to(tl.int64)
    head = h.to(tl.int64)
    q_rows = batch * stride_qb + row_h.to(tl.int64) * stride_qh + row_m.to(tl.int64) * stride_qm
    q_parts = q + q_rows[:, None] + (offs * PARTS)[None, :]
    q_a = tl.load(q_parts, mask=rows_ok, other=0.0)
    q_b = tl.load(q_parts + 1, mask=rows_ok, other=0.0)
    if PARTS == 4:
        q_c = tl.load(q_parts + 2, mask=rows_ok, other=0.0)
        q_d = tl.load(q_parts + 3, mask=rows_ok, other=0.0)
    lo, hi, span, used = tile_keys(
        kv_len, positions, stride_pb, stride_pm, b, tile, L_q, L_kv, num_splits, BLOCK_N, GROUP, BLOCK_M, CAUSAL,
        WINDOW, HAS_LEN, RING,
    )  # fmt: skip
    if split >= used:
        return
    length = key_length(kv_len, b, L_kv, HAS_LEN, RING)
    pos = query_positions(positions, stride_pb, stride_pm, b, row_m, L_q, L_q, length, CAUSAL)
    first_vector = (batch * KV_HEADS + head) * L_kv
    k_words = k.to(tl.pointer_type(tl.uint16))
    v_words = v.to(tl.pointer_type(tl.uint16))
    mask_rows = 0
    if MASK != 0:
        mask_rows = (
            mask + (batch * stride_mb + row_h.to(tl.int64) * stride_mh + row_m.to(tl.int64) * stride_mm)[:, None]
        )
    local_n = tl.arange(0, BLOCK_N)
    m_i = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    acc_a = tl.zeros([BLOCK_M, BLOCK_W], tl.float32)
    acc_b = tl.zeros([BLOCK_M, BLOCK_W], tl.float32)
    if PARTS == 4:
        acc_c = tl.zeros([BLOCK_M, BLOCK_W], tl.float32)
        acc_d = tl.zeros([BLOCK_M, BLOCK_W], tl.float32)
    begin = lo + split * span
    end = tl.minimum(begin + span, hi)
    next_first, next_slots = key_slots(begin, local_n, L_kv, RING)
    next_ok = begin + local_n < end
    next_k = tl.load(k_scale + first_vector + next_first + next_slots, mask=next_ok, other=0.0)
    next_v = tl.load(v_scale + first_vector + next_first + next_slots, mask=next_ok, other=0.0)
    for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        n_ok = start + local_n < end
        first, slots = key_slots(start, local_n, L_kv, RING)
        vector = first_vector + first
        k_a, k_b, k_c, k_d = load_parts(
            k_words + vector * WORDS, slots[None, :], offs[:, None], n_ok[None, :], WORDS, BLOCK_W, FORMAT, DTYPE
        )
        scale_k = next_k.to(tl.float32) * unit
        scale_v = next_v.to(tl.float32) * unit
        # Too small to be copied to shared memory ahead, as codes are: those of the next step are on their way now.
        next_first, next_slots = key_slots(start + BLOCK_N, local_n, L_kv, RING)
        next_ok = start + BLOCK_N + local_n < end
        next_k = tl.load(k_scale + first_vector + next_first + next_slots, mask=next_ok, other=0.0)
        next_v = tl.load(v_scale + first_vector + next_first + next_slots, mask=next_ok, other=0.0)
        v_a, v_b, v_c, v_d = load_parts(
            v_words + vector * WORDS, slots[:, None], offs[None, :], n_ok[:, None], WORDS, BLOCK_W, FORMAT, DTYPE
        )
        s = tl.dot(q_b, k_b, tl.dot(q_a, k_a, input_precision="ieee"), input_precision="ieee")
        if PARTS == 4:
            # By itself: each sum waits for the one before.
            s += tl.dot(q_d, k_d, tl.dot(q_c, k_c, input_precision="ieee"), input_precision="ieee")
        s = s * scale_k[None, :]
        keep = keep_keys(start + local_n, pos, end, CAUSAL, WINDOW)
        s = masked_logits(s, keep, mask_rows, stride_mn, start, local_n, row_ok, end, qk_scale, SOFTCAP, MASK)
        m_new = tl.maximum(m_i, tl.max(s, 1))
        m_safe = finite_or_zero(m_new)
        p = tl.exp2(s - m_safe[:, None])
        alpha = tl.exp2(m_i - m_safe)
        l_i = l_i * alpha + tl.sum(p, 1)
        weights = (p * scale_v[None, :]).to(DTYPE)
        acc_a = tl.dot(weights, v_a, acc_a * alpha[:, None], input_precision="ieee")
        acc_b = tl.dot(weights, v_b, acc_b * alpha[:, None], input_precision="ieee")
        if PARTS == 4:
            acc_c = tl.dot(weights, v_c, acc_c * alpha[:, None], input_precision="ieee")
            acc_d = tl.dot(weights, v_d, acc_d * alpha[:, None], input_precision="ieee")
        m_i = m_new
    if SPLITS:
        slot = ((batch * KV_HEADS + head) * num_splits + split) * (L_q * GROUP) + rows
        place = partial + slot[:, None] * HEAD_DIM + (offs * PARTS)[None, :]
        tl.store(stats + slot * 2, m_i, mask=row_ok)
        tl.store(stats + slot * 2 + 1, l_i, mask=row_ok)
    else:
        factor = tl.full([BLOCK_M], 1.0, tl.float32)
        if SINKS:
            l_i, factor = with_sink(m_i, l_i, tl.load(sinks + row_h, mask=row_ok, other=0.0))
        factor = (factor / tl.where(l_i == 0.0, 1.0, l_i))[:, None]
        acc_a *= factor
        acc_b *= factor
        if PARTS == 4:
            acc_c *= factor
            acc_d *= factor
        o_rows = batch * stride_ob + row_h.to(tl.int64) * stride_oh + row_m.to(tl.int64) * stride_om
        place = out + o_rows[:, None] + (offs * PARTS)[None, :]
    tl.store(place, acc_a.to(place.dtype.element_ty), mask=rows_ok)
    tl.store(place + 1, acc_b.to(place.dtype.element_ty), mask=rows_ok)
    if PARTS == 4:
        tl.store(place + 2, acc_c.to(place.dtype.element_ty), mask=rows_ok)
        tl.store(place + 3, acc_d.to(place.dtype.element_ty), mask=rows_ok)


@triton.jit(do_not_specialize=["num_splits"])
def quantized_merge_kernel(
    out, partial, stats, kv_len, positions, sinks, stride_ob, stride_oh, stride_om, stride_pb, stride_pm,
    L_q, L_kv, num_splits,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, HAS_LEN: tl.constexpr,
    RING: tl.constexpr, SINKS: tl.constexpr, FORMAT: tl.constexpr,
):  # fmt: skip
    """Grid: (L_q * GROUP, batch * KV_HEADS). Merges the splits of one row, and rotates ``tq4`` back."""
    row = tl.program_id(0)
    bh = tl.program_id(1)
    b = bh // KV_HEADS
    _lo, _hi, _span, used = tile_keys(
        kv_len, positions, stride_pb, stride_pm, b, row // BLOCK_M, L_q, L_kv, num_splits, BLOCK_N, GROUP, BLOCK_M,
        CAUSAL, WINDOW, HAS_LEN, RING,
    )  # fmt: skip
    column = tl.arange(0, BLOCK_D)
    column_ok = column < HEAD_DIM
    base = bh.to(tl.int64) * num_splits * (L_q * GROUP) + row
    m_run = tl.full([1], float("-inf"), tl.float32)
    l_run = tl.zeros([1], tl.float32)
    acc = tl.zeros([BLOCK_D], tl.float32)
    for first in tl.range(0, used, BLOCK_S):
        split = first + tl.arange(0, BLOCK_S)
        ok = split < used
        slot = base + split.to(tl.int64) * (L_q * GROUP)
        m = tl.load(stats + slot * 2, mask=ok, other=float("-inf"))
        weight = tl.load(stats + slot * 2 + 1, mask=ok, other=0.0)
        place = partial + slot[:, None] * HEAD_DIM + column[None, :]
        values = tl.load(place, mask=ok[:, None] & column_ok[None, :], other=0.0)
        m_new = tl.maximum(m_run, tl.max(m, 0))
        m_safe = finite_or_zero(m_new)
        scale = tl.exp2(m - m_safe)
        alpha = tl.exp2(m_run - m_safe)
        acc = acc * alpha + tl.sum(values * scale[:, None], 0)
        l_run = l_run * alpha + tl.sum(weight * scale, 0)
        m_run = m_new
    h = (bh % KV_HEADS) * GROUP + row % GROUP
    if SINKS:
        l_run, alpha = with_sink(m_run, l_run, tl.load(sinks + h))
        acc = acc * alpha
    acc = acc / tl.where(l_run == 0.0, 1.0, l_run)
    if FORMAT == 2:
        acc = hadamard(acc, HEAD_DIM, tl.bfloat16 != out.dtype.element_ty) * head_signs(column) * (HEAD_DIM**-0.5)
    o_row = b.to(tl.int64) * stride_ob + h.to(tl.int64) * stride_oh + (row // GROUP).to(tl.int64) * stride_om
    tl.store(out + o_row + column, acc.to(out.dtype.element_ty), mask=column_ok)

"""Tiled attention for any number of query rows: prefill.

A CTA takes ``BLOCK_M`` query rows of one head and walks over the keys that they attend to (Dao,
"FlashAttention-2", 2023). Blocks of keys that every row of the tile attends to are not masked element by element:
either three loops take the blocks in front of them, them, and those behind, or one loop asks at each block.
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


@triton.jit
def load_block(pointers, n_ok, d_ok, ENDS: tl.constexpr, PADDED: tl.constexpr):
    """A block of keys or values; 0 beyond the last key if ``ENDS``, beyond the head if ``PADDED``."""
    if ENDS and PADDED:
        block = tl.load(pointers, mask=n_ok & d_ok, other=0.0)
    elif ENDS:
        block = tl.load(pointers, mask=n_ok, other=0.0)
    elif PADDED:
        block = tl.load(pointers, mask=d_ok, other=0.0)
    else:
        block = tl.load(pointers)
    return block


@triton.jit
def walk(
    acc, l_i, m_i, qt, k_base, v_base, mask_rows, stride_kn, stride_vn, stride_mn, begin, end, full_lo, full_hi, length,
    L_kv, pos, row_ok, qk_scale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    CHECKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, MASK: tl.constexpr,
    RING: tl.constexpr,
):  # fmt: skip
    """Adds the keys from ``begin``, a multiple of ``BLOCK_N``, to ``end``.

    ``CHECKED``: 0 every row attends to every key; 1 each element is tested; 2 those of blocks outside of ``full_lo`` to
    ``full_hi`` are.
    """
    local_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    d_ok = offs_d < HEAD_DIM
    for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        first, slots = key_slots(start, local_n, L_kv, RING)
        k_ptrs = k_base + tl.cast(first, tl.int64) * stride_kn + (slots[None, :] * stride_kn + offs_d[:, None])
        v_ptrs = v_base + tl.cast(first, tl.int64) * stride_vn + (slots[:, None] * stride_vn + offs_d[None, :])
        n_ok = start + local_n < length
        kt = load_block(k_ptrs, n_ok[None, :], d_ok[:, None], CHECKED != 0, HEAD_DIM != BLOCK_D)
        s = tl.dot(qt, kt)
        if CHECKED == 1 or SOFTCAP > 0 or MASK != 0:
            keep = keep_keys(start + local_n, pos, length, CAUSAL, WINDOW)
            s = masked_logits(s, keep, mask_rows, stride_mn, start, local_n, row_ok, length, qk_scale, SOFTCAP, MASK)
            m_new = tl.maximum(m_i, tl.max(s, 1))
            m_safe = finite_or_zero(m_new)
            p = tl.exp2(s - m_safe[:, None])
        else:
            # Two conditions, not one: the first is known when compiling, the second is not.
            if CHECKED == 2:  # noqa: SIM102
                if (start < full_lo) | (start >= full_hi):
                    s = tl.where(keep_keys(start + local_n, pos, length, CAUSAL, WINDOW), s, float("-inf"))
            m_new = tl.maximum(m_i, tl.max(s, 1) * qk_scale)
            m_safe = m_new if CHECKED == 0 else finite_or_zero(m_new)
            p = tl.exp2(s * qk_scale - m_safe[:, None])
        alpha = tl.exp2(m_i - m_safe)
        l_i = l_i * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        vt = load_block(v_ptrs, n_ok[:, None], d_ok[None, :], CHECKED != 0, HEAD_DIM != BLOCK_D)
        acc = tl.dot(p.to(vt.dtype), vt, acc)
        m_i = m_new
    return acc, l_i, m_i


@triton.jit(do_not_specialize=["num_heads", "group", "all_heads", "section"])
def attention_tiled_kernel(
    q, k, v, out, mask, kv_len, positions, sinks,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_ob, stride_oh, stride_om, stride_mb, stride_mh, stride_mm, stride_mn, stride_pb, stride_pm,
    L_q, L_kv, num_heads, group, all_heads, section, qk_scale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, MASK: tl.constexpr, HAS_LEN: tl.constexpr,
    ONE_LOOP: tl.constexpr, RING: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Grid: (row tiles * ``all_heads``); ``all_heads`` is batch * num_heads.

    CTAs start section by section, each of so many heads that their keys and values stay in the L2 cache. In a section
    the last tiles of all its heads, which have most keys if causal, start first, so that none is left at the end.
    """
    tiles = tl.cdiv(L_q, BLOCK_M)
    first_head = tl.program_id(0) // (section * tiles) * section
    index = tl.program_id(0) - first_head * tiles
    width = tl.minimum(section, all_heads - first_head)
    tile = tiles - 1 - index // width
    b = (first_head + index % width) // num_heads
    h = (first_head + index % width) % num_heads
    length = key_length(kv_len, b, L_kv, HAS_LEN, RING)
    qk_scale = tl.cast(qk_scale, tl.float32)
    local_m = tl.arange(0, BLOCK_M)
    offs_m = tile * BLOCK_M + local_m
    row_ok = offs_m < L_q
    pos = query_positions(positions, stride_pb, stride_pm, b, offs_m, L_q, L_q, length, CAUSAL)
    offs_d = tl.arange(0, BLOCK_D)
    rows_ok = row_ok[:, None] & (offs_d[None, :] < HEAD_DIM)
    batch = b.to(tl.int64)
    head = h.to(tl.int64)
    kv_head = (h // group).to(tl.int64)
    first_row = (tile * BLOCK_M).to(tl.int64)
    q_base = q + batch * stride_qb + head * stride_qh + first_row * stride_qm
    qt = tl.load(q_base + local_m[:, None] * stride_qm + offs_d[None, :], mask=rows_ok, other=0.0)
    k_base = k + batch * stride_kb + kv_head * stride_kh
    v_base = v + batch * stride_vb + kv_head * stride_vh
    mask_rows = 0
    if MASK != 0:
        mask_rows = mask + (batch * stride_mb + head * stride_mh + offs_m.to(tl.int64) * stride_mm)[:, None]

    lo = length * 0
    hi = length
    full_lo = lo
    full_hi = length // BLOCK_N * BLOCK_N
    if CAUSAL != 0:
        first, last = first_and_last(pos, offs_m, L_q, CAUSAL)
        hi = tl.maximum(tl.minimum(length, last + 1), 0)
        full_hi = tl.maximum(tl.minimum(length, first + 1), 0) // BLOCK_N * BLOCK_N
        if WINDOW > 0:
            lo = tl.minimum(tl.maximum(first - WINDOW + 1, 0), hi) // BLOCK_N * BLOCK_N
            full_lo = tl.cdiv(tl.maximum(tl.minimum(last - WINDOW + 1, hi), 0), BLOCK_N) * BLOCK_N
            full_lo = tl.maximum(full_lo, lo)
    full_hi = tl.maximum(full_hi, full_lo)

    m_i = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if ONE_LOOP or MASK != 0:
        acc, l_i, m_i = walk(
            acc, l_i, m_i, qt, k_base, v_base, mask_rows, stride_kn, stride_vn, stride_mn, lo, hi, full_lo, full_hi,
            length, L_kv, pos, row_ok, qk_scale, HEAD_DIM, BLOCK_D, BLOCK_N, STAGES, 2, CAUSAL, WINDOW, SOFTCAP, MASK,
            RING,
        )  # fmt: skip
    else:
        if WINDOW > 0:
            acc, l_i, m_i = walk(
                acc, l_i, m_i, qt, k_base, v_base, mask_rows, stride_kn, stride_vn, stride_mn, lo, full_lo, lo, lo,
                length, L_kv, pos, row_ok, qk_scale, HEAD_DIM, BLOCK_D, BLOCK_N, STAGES, 1, CAUSAL, WINDOW, SOFTCAP, 0,
                RING,
            )  # fmt: skip
        acc, l_i, m_i = walk(
            acc, l_i, m_i, qt, k_base, v_base, mask_rows, stride_kn, stride_vn, stride_mn, full_lo, full_hi, lo, lo,
            length, L_kv, pos, row_ok, qk_scale, HEAD_DIM, BLOCK_D, BLOCK_N, STAGES, 0, CAUSAL, WINDOW, SOFTCAP, 0,
            RING,
        )  # fmt: skip
        acc, l_i, m_i = walk(
            acc, l_i, m_i, qt, k_base, v_base, mask_rows, stride_kn, stride_vn, stride_mn, full_hi, hi, lo, lo,
            length, L_kv, pos, row_ok, qk_scale, HEAD_DIM, BLOCK_D, BLOCK_N, STAGES, 1, CAUSAL, WINDOW, SOFTCAP, 0,
            RING,
        )  # fmt: skip
    if SINKS:
        l_i, alpha = with_sink(m_i, l_i, tl.load(sinks + h))
        acc = acc * alpha[:, None]
    o_base = out + batch * stride_ob + head * stride_oh + first_row * stride_om
    result = acc / tl.where(l_i == 0.0, 1.0, l_i)[:, None]
    tl.store(o_base + local_m[:, None] * stride_om + offs_d[None, :], result.to(out.dtype.element_ty), mask=rows_ok)

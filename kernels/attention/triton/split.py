"""Split-K attention for few query rows: decode and short drafts.

The keys of one KV head are split into ``num_splits`` ranges. A CTA takes one range and all query rows that share the
KV head, in one tile, so that it loads keys and values once (Dao et al., "Flash-Decoding for long-context inference",
2023). A second kernel merges the splits; the CTA of a split beyond the filled length ends at once.

From sm_90 on the host launches the second kernel while the first runs, and its CTAs wait on the GPU for the first's end
(programmatic dependent launch): that hides the time a launch takes. A kernel that waits so is named ``*_pdl``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

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
def split_keys(
    kv_len, positions, stride_pb, stride_pm, b, L_q, L_kv, num_splits, block_n,
    MAX_Q: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, HAS_LEN: tl.constexpr, RING: tl.constexpr,
):  # fmt: skip
    """How the keys of batch row ``b`` are split: first key, end, keys per split, splits that have keys (at least 1)."""
    length = key_length(kv_len, b, L_kv, HAS_LEN, RING)
    lo = length * 0
    hi = length
    if CAUSAL != 0:
        m = tl.arange(0, MAX_Q)
        pos = query_positions(positions, stride_pb, stride_pm, b, m, L_q, L_q, length, CAUSAL)
        first, last = first_and_last(pos, m, L_q, CAUSAL)
        hi = tl.maximum(tl.minimum(length, last + 1), 0)
        if WINDOW > 0:
            lo = tl.minimum(tl.maximum(first - WINDOW + 1, 0), hi) // block_n * block_n
    blocks = tl.cdiv(hi - lo, block_n)
    per = tl.maximum(tl.cdiv(blocks, num_splits), 1)
    used = tl.maximum(tl.cdiv(blocks, per), 1)
    return lo, hi, length, per * block_n, used


@triton.jit
def compute_splits(
    q, k, v, out, partial, stats, mask, kv_len, positions, sinks,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_ob, stride_oh, stride_om, stride_mb, stride_mh, stride_mm, stride_mn, stride_pb, stride_pm,
    L_q, L_kv, num_splits, qk_scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, MAX_Q: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, MASK: tl.constexpr, HAS_LEN: tl.constexpr,
    MERGED: tl.constexpr, RING: tl.constexpr, SINKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid: (num_splits, KV_HEADS * row tiles, batch). Rows of a tile are (query, head of the group) pairs.

    ``partial`` is [batch, KV_HEADS, num_splits, L_q * GROUP, HEAD_DIM] fp32, not normalised; ``stats`` the same without
    the last dimension, times 2: maximum and sum, in base 2. A CTA stores a lone split to ``out``; without
    ``MERGED`` there is no other.
    """
    if PDL:
        # In this order: when the kernel behind this one begins, all in front of it has ended.
        gdc_wait()
        gdc_launch_dependents()
    split = tl.program_id(0)
    h = tl.program_id(1) % KV_HEADS
    tile = tl.program_id(1) // KV_HEADS
    b = tl.program_id(2)
    qk_scale = tl.cast(qk_scale, tl.float32)
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row_m = rows // GROUP
    row_h = h * GROUP + rows % GROUP
    row_ok = rows < L_q * GROUP
    offs_d = tl.arange(0, BLOCK_D)
    d_ok = offs_d < HEAD_DIM
    rows_ok = row_ok[:, None] & d_ok[None, :]
    batch = b.to(tl.int64)
    head = h.to(tl.int64)
    q_rows = batch * stride_qb + row_h.to(tl.int64) * stride_qh + row_m.to(tl.int64) * stride_qm
    # On its way while the length is read, on which everything else waits.
    qt = tl.load(q + q_rows[:, None] + offs_d[None, :], mask=rows_ok, other=0.0)
    lo, hi, length, span, used = split_keys(
        kv_len, positions, stride_pb, stride_pm, b, L_q, L_kv, num_splits, BLOCK_N, MAX_Q, CAUSAL, WINDOW, HAS_LEN, RING
    )
    if split >= used:
        return
    pos = query_positions(positions, stride_pb, stride_pm, b, row_m, L_q, L_q, length, CAUSAL)
    k_base = k + batch * stride_kb + head * stride_kh
    v_base = v + batch * stride_vb + head * stride_vh
    mask_rows = 0
    if MASK != 0:
        mask_rows = (
            mask + (batch * stride_mb + row_h.to(tl.int64) * stride_mh + row_m.to(tl.int64) * stride_mm)[:, None]
        )
    local_n = tl.arange(0, BLOCK_N)
    m_i = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    begin = lo + split * span
    end = tl.minimum(begin + span, hi)
    for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        n_ok = start + local_n < end
        first, slots = key_slots(start, local_n, L_kv, RING)
        k_ptrs = k_base + tl.cast(first, tl.int64) * stride_kn + (slots[None, :] * stride_kn + offs_d[:, None])
        v_ptrs = v_base + tl.cast(first, tl.int64) * stride_vn + (slots[:, None] * stride_vn + offs_d[None, :])
        if HEAD_DIM == BLOCK_D:
            kt = tl.load(k_ptrs, mask=n_ok[None, :], other=0.0)
            vt = tl.load(v_ptrs, mask=n_ok[:, None], other=0.0)
        else:
            kt = tl.load(k_ptrs, mask=n_ok[None, :] & d_ok[:, None], other=0.0)
            vt = tl.load(v_ptrs, mask=n_ok[:, None] & d_ok[None, :], other=0.0)
        keep = keep_keys(start + local_n, pos, end, CAUSAL, WINDOW)
        s = masked_logits(
            tl.dot(qt, kt), keep, mask_rows, stride_mn, start, local_n, row_ok, end, qk_scale, SOFTCAP, MASK
        )
        m_new = tl.maximum(m_i, tl.max(s, 1))
        m_safe = finite_or_zero(m_new)
        p = tl.exp2(s - m_safe[:, None])
        alpha = tl.exp2(m_i - m_safe)
        l_i = l_i * alpha + tl.sum(p, 1)
        acc = tl.dot(p.to(vt.dtype), vt, acc * alpha[:, None])
        m_i = m_new
    l_all = l_i
    if SINKS:
        sink = tl.load(sinks + row_h, mask=row_ok, other=0.0)
        l_all, alpha = with_sink(m_i, l_i, sink)
        result = acc * alpha[:, None]
    else:
        result = acc
    if MERGED:
        alone = used == 1
        slot = ((batch * KV_HEADS + head) * num_splits + split) * (L_q * GROUP) + rows
        tl.store(partial + slot[:, None] * HEAD_DIM + offs_d[None, :], acc, mask=rows_ok & ~alone)
        tl.store(stats + slot * 2, m_i, mask=row_ok & ~alone)
        tl.store(stats + slot * 2 + 1, l_i, mask=row_ok & ~alone)
        rows_ok = rows_ok & alone
    o_rows = batch * stride_ob + row_h.to(tl.int64) * stride_oh + row_m.to(tl.int64) * stride_om
    result = result / tl.where(l_all == 0.0, 1.0, l_all)[:, None]
    tl.store(out + o_rows[:, None] + offs_d[None, :], result.to(out.dtype.element_ty), mask=rows_ok)


@triton.jit(do_not_specialize=["num_splits"])
def attention_split_kernel(
    q, k, v, out, partial, stats, mask, kv_len, positions, sinks,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_ob, stride_oh, stride_om, stride_mb, stride_mh, stride_mm, stride_mn, stride_pb, stride_pm,
    L_q, L_kv, num_splits, qk_scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, MAX_Q: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, MASK: tl.constexpr, HAS_LEN: tl.constexpr,
    MERGED: tl.constexpr, RING: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Computes the splits; see ``compute_splits``."""
    compute_splits(
        q, k, v, out, partial, stats, mask, kv_len, positions, sinks,
        stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
        stride_ob, stride_oh, stride_om, stride_mb, stride_mh, stride_mm, stride_mn, stride_pb, stride_pm,
        L_q, L_kv, num_splits, qk_scale, KV_HEADS, GROUP, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, STAGES, MAX_Q,
        CAUSAL, WINDOW, SOFTCAP, MASK, HAS_LEN, MERGED, RING, SINKS, False,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_splits"])
def attention_split_pdl(
    q, k, v, out, partial, stats, mask, kv_len, positions, sinks,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_ob, stride_oh, stride_om, stride_mb, stride_mh, stride_mm, stride_mn, stride_pb, stride_pm,
    L_q, L_kv, num_splits, qk_scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, MAX_Q: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, MASK: tl.constexpr, HAS_LEN: tl.constexpr,
    MERGED: tl.constexpr, RING: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Like ``attention_split_kernel``, and may be launched while the kernel in front of it runs."""
    compute_splits(
        q, k, v, out, partial, stats, mask, kv_len, positions, sinks,
        stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
        stride_ob, stride_oh, stride_om, stride_mb, stride_mh, stride_mm, stride_mn, stride_pb, stride_pm,
        L_q, L_kv, num_splits, qk_scale, KV_HEADS, GROUP, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, STAGES, MAX_Q,
        CAUSAL, WINDOW, SOFTCAP, MASK, HAS_LEN, MERGED, RING, SINKS, True,
    )  # fmt: skip


@triton.jit
def merge_splits(
    out, partial, stats, kv_len, positions, sinks, stride_ob, stride_oh, stride_om, stride_pb, stride_pm,
    L_q, L_kv, num_splits, block_n, kv_heads, group,
    HEAD_DIM: tl.constexpr, MAX_Q: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, HAS_LEN: tl.constexpr,
    BLOCK_S: tl.constexpr, CHUNK_D: tl.constexpr, RING: tl.constexpr, SINKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Merges the splits of one row, ``BLOCK_S`` at a time."""
    if PDL:
        # The product behind this kernel may load its weights meanwhile.
        gdc_launch_dependents()
    row = tl.program_id(0)
    bh = tl.program_id(1)
    b = bh // kv_heads
    _lo, _hi, _length, _span, used = split_keys(
        kv_len, positions, stride_pb, stride_pm, b, L_q, L_kv, num_splits, block_n, MAX_Q, CAUSAL, WINDOW, HAS_LEN, RING
    )
    if PDL:
        # In every CTA, also in one that has nothing to merge: the kernel behind this one starts once all have ended.
        # It loads lengths and positions before: what stored them ended before the kernel in front let this one start.
        gdc_wait()
    if used == 1:
        return
    offs_d = tl.program_id(2) * CHUNK_D + tl.arange(0, CHUNK_D)
    d_ok = offs_d < HEAD_DIM
    base = bh.to(tl.int64) * num_splits * (L_q * group) + row
    m_run = tl.full([1], float("-inf"), tl.float32)
    l_run = tl.zeros([1], tl.float32)
    acc = tl.zeros([CHUNK_D], tl.float32)
    for first in tl.range(0, used, BLOCK_S):
        split = first + tl.arange(0, BLOCK_S)
        ok = split < used
        slot = base + split.to(tl.int64) * (L_q * group)
        m = tl.load(stats + slot * 2, mask=ok, other=float("-inf"))
        weight = tl.load(stats + slot * 2 + 1, mask=ok, other=0.0)
        values = tl.load(
            partial + slot[:, None] * HEAD_DIM + offs_d[None, :], mask=ok[:, None] & d_ok[None, :], other=0.0
        )
        m_new = tl.maximum(m_run, tl.max(m, 0))
        m_safe = finite_or_zero(m_new)
        scale = tl.exp2(m - m_safe)
        alpha = tl.exp2(m_run - m_safe)
        acc = acc * alpha + tl.sum(values * scale[:, None], 0)
        l_run = l_run * alpha + tl.sum(weight * scale, 0)
        m_run = m_new
    h = (bh % kv_heads) * group + row % group
    if SINKS:
        l_run, alpha = with_sink(m_run, l_run, tl.load(sinks + h))
        acc = acc * alpha
    o_row = b.to(tl.int64) * stride_ob + h.to(tl.int64) * stride_oh + (row // group).to(tl.int64) * stride_om
    result = acc / tl.where(l_run == 0.0, 1.0, l_run)
    tl.store(out + o_row + offs_d, result.to(out.dtype.element_ty), mask=d_ok)


@triton.jit(do_not_specialize=["num_splits", "block_n", "kv_heads", "group"])
def attention_reduce_kernel(
    out, partial, stats, kv_len, positions, sinks, stride_ob, stride_oh, stride_om, stride_pb, stride_pm,
    L_q, L_kv, num_splits, block_n, kv_heads, group,
    HEAD_DIM: tl.constexpr, MAX_Q: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, HAS_LEN: tl.constexpr,
    BLOCK_S: tl.constexpr, CHUNK_D: tl.constexpr, RING: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Grid: (L_q * group, batch * kv_heads, head_dim / CHUNK_D)."""
    merge_splits(
        out, partial, stats, kv_len, positions, sinks, stride_ob, stride_oh, stride_om, stride_pb, stride_pm, L_q, L_kv,
        num_splits, block_n, kv_heads, group, HEAD_DIM, MAX_Q, CAUSAL, WINDOW, HAS_LEN, BLOCK_S, CHUNK_D,
        RING, SINKS, False,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_splits", "block_n", "kv_heads", "group"])
def attention_reduce_pdl(
    out, partial, stats, kv_len, positions, sinks, stride_ob, stride_oh, stride_om, stride_pb, stride_pm,
    L_q, L_kv, num_splits, block_n, kv_heads, group,
    HEAD_DIM: tl.constexpr, MAX_Q: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, HAS_LEN: tl.constexpr,
    BLOCK_S: tl.constexpr, CHUNK_D: tl.constexpr, RING: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Like ``attention_reduce_kernel``, and may be launched while the kernel in front of it runs."""
    merge_splits(
        out, partial, stats, kv_len, positions, sinks, stride_ob, stride_oh, stride_om, stride_pb, stride_pm, L_q, L_kv,
        num_splits, block_n, kv_heads, group, HEAD_DIM, MAX_Q, CAUSAL, WINDOW, HAS_LEN, BLOCK_S, CHUNK_D,
        RING, SINKS, True,
    )  # fmt: skip

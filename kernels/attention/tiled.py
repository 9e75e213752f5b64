"""Tiled attention for any number of query rows: prefill.

One block takes ``BLOCK_M`` query rows of one head and walks over the keys they attend to (Dao,
"FlashAttention-2", 2023). Blocks of keys that every row of the tile attends to are not masked element by element.
"""

from __future__ import annotations

import triton
import triton.language as tl

from etcuda.kernels.attention.masking import (
    finite_or_zero,
    first_and_last,
    keep_keys,
    key_length,
    masked_logits,
    query_positions,
)


@triton.jit
def walk(
    acc, l_i, m_i, qt, k_base, v_base, mask_rows, stride_kn, stride_vn, stride_mn, begin, end, length, pos, row_ok,
    qk_scale, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    CHECKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Adds the keys from ``begin``, a multiple of ``BLOCK_N``, to ``end``; ``CHECKED`` tests each element."""
    local_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    d_ok = offs_d < HEAD_DIM
    for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        k_ptrs = k_base + tl.cast(start, tl.int64) * stride_kn + (local_n[None, :] * stride_kn + offs_d[:, None])
        v_ptrs = v_base + tl.cast(start, tl.int64) * stride_vn + (local_n[:, None] * stride_vn + offs_d[None, :])
        n_ok = start + local_n < length
        if CHECKED:
            kt = tl.load(k_ptrs, mask=n_ok[None, :] & d_ok[:, None], other=0.0)
        elif HEAD_DIM != BLOCK_D:
            kt = tl.load(k_ptrs, mask=d_ok[:, None], other=0.0)
        else:
            kt = tl.load(k_ptrs)
        s = tl.dot(qt, kt)
        if CHECKED or SOFTCAP > 0:
            keep = keep_keys(start + local_n, pos, length, CAUSAL, WINDOW)
            s = masked_logits(s, keep, mask_rows, stride_mn, start, local_n, row_ok, length, qk_scale, SOFTCAP, MASK)
            m_new = tl.maximum(m_i, tl.max(s, 1))
            m_safe = finite_or_zero(m_new)
            p = tl.exp2(s - m_safe[:, None])
        else:
            m_new = tl.maximum(m_i, tl.max(s, 1) * qk_scale)
            m_safe = m_new
            p = tl.exp2(s * qk_scale - m_safe[:, None])
        alpha = tl.exp2(m_i - m_safe)
        l_i = l_i * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        if CHECKED:
            vt = tl.load(v_ptrs, mask=n_ok[:, None] & d_ok[None, :], other=0.0)
        elif HEAD_DIM != BLOCK_D:
            vt = tl.load(v_ptrs, mask=d_ok[None, :], other=0.0)
        else:
            vt = tl.load(v_ptrs)
        acc = tl.dot(p.to(vt.dtype), vt, acc)
        m_i = m_new
    return acc, l_i, m_i


@triton.jit(do_not_specialize=["num_heads", "group"])
def attention_tiled_kernel(
    q, k, v, out, mask, kv_len, positions,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_ob, stride_oh, stride_om, stride_mb, stride_mh, stride_mm, stride_mn, stride_pb, stride_pm,
    L_q, L_kv, num_heads, group, qk_scale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, MASK: tl.constexpr, HAS_LEN: tl.constexpr,
):  # fmt: skip
    """Grid: (row tiles, batch * num_heads). The last tiles, which have most keys if causal, start first."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    b = tl.program_id(1) // num_heads
    h = tl.program_id(1) % num_heads
    length = key_length(kv_len, b, L_kv, HAS_LEN)
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
    if MASK != 0:
        full_hi = full_lo
    full_hi = tl.maximum(full_hi, full_lo)

    m_i = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if WINDOW > 0:
        acc, l_i, m_i = walk(
            acc, l_i, m_i, qt, k_base, v_base, mask_rows, stride_kn, stride_vn, stride_mn, lo, full_lo, length, pos,
            row_ok, qk_scale, HEAD_DIM, BLOCK_D, BLOCK_N, STAGES, True, CAUSAL, WINDOW, SOFTCAP, MASK,
        )  # fmt: skip
    if MASK == 0:
        acc, l_i, m_i = walk(
            acc, l_i, m_i, qt, k_base, v_base, mask_rows, stride_kn, stride_vn, stride_mn, full_lo, full_hi, length,
            pos, row_ok, qk_scale, HEAD_DIM, BLOCK_D, BLOCK_N, STAGES, False, CAUSAL, WINDOW, SOFTCAP, 0,
        )  # fmt: skip
    acc, l_i, m_i = walk(
        acc, l_i, m_i, qt, k_base, v_base, mask_rows, stride_kn, stride_vn, stride_mn, full_hi, hi, length, pos,
        row_ok, qk_scale, HEAD_DIM, BLOCK_D, BLOCK_N, STAGES, True, CAUSAL, WINDOW, SOFTCAP, MASK,
    )  # fmt: skip
    o_base = out + batch * stride_ob + head * stride_oh + first_row * stride_om
    result = acc / tl.where(l_i == 0.0, 1.0, l_i)[:, None]
    tl.store(o_base + local_m[:, None] * stride_om + offs_d[None, :], result.to(out.dtype.element_ty), mask=rows_ok)

"""Rotary positions on queries and keys, RMSNorms in front of them, and writes of keys and values to their caches."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _rotated(
    x, weight, cos, sin, column, partner, turns, mask, cos_stride, sin_stride,
    D: tl.constexpr, R: tl.constexpr, WIDTH: tl.constexpr, INTERLEAVED: tl.constexpr,
    EPS: tl.constexpr, WEIGHT_OFFSET: tl.constexpr, HAS_WEIGHT: tl.constexpr,
):  # fmt: skip
    """Rows of heads, normed and rotated, in fp32. ``x`` points to the first number of each head, [heads, 1]."""
    value = tl.load(x + column, mask=mask, other=0.0).to(tl.float32)
    other = tl.load(x + partner, mask=mask & turns, other=0.0).to(tl.float32)
    if WIDTH == R:
        entry = column
    elif INTERLEAVED:
        entry = column // 2
    else:
        entry = tl.where(column < R // 2, column, column - R // 2)
    c = tl.load(cos + entry * cos_stride, mask=turns, other=1.0).to(tl.float32)
    s = tl.load(sin + entry * sin_stride, mask=turns, other=0.0).to(tl.float32)
    if EPS > 0:
        inverse = tl.rsqrt(tl.sum(value * value, 1) / D + EPS)[:, None]
        value *= inverse
        other *= inverse
        if HAS_WEIGHT:
            value *= tl.load(weight + column, mask=column < D, other=0.0).to(tl.float32) + WEIGHT_OFFSET
            other *= tl.load(weight + partner, mask=turns, other=0.0).to(tl.float32) + WEIGHT_OFFSET
    is_first = column % 2 == 0 if INTERLEAVED else column < R // 2
    return value * c + tl.where(is_first, -other, other) * s


@triton.jit
def _rotary_cache(
    q, k, v,  # [batch, heads, L, D], the last dimension dense
    cos, sin,  # [batch, L, WIDTH]
    positions,  # [L], or [1] if CONSECUTIVE
    q_weight, k_weight,  # [D]
    q_out,  # [batch, HQ, L, D]
    k_cache, v_cache,  # [batch, HKV, S, D]
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, cos_b, cos_l, cos_w, sin_b, sin_l, sin_w, positions_l,
    out_b, out_h, out_l, kc_b, kc_h, kc_s, vc_b, vc_h, vc_s, num_rows, length, cache_length,
    HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, R: tl.constexpr, WIDTH: tl.constexpr,
    INTERLEAVED: tl.constexpr, CONSECUTIVE: tl.constexpr, EPS: tl.constexpr, WEIGHT_OFFSET: tl.constexpr,
    HAS_Q_WEIGHT: tl.constexpr, HAS_K_WEIGHT: tl.constexpr, HEADS: tl.constexpr, BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """A CTA has HEADS heads of one token: of the queries, then of the keys, then of the values."""
    if PDL:
        gdc_launch_dependents()
    row = tl.program_id(0)
    batch = (row // length).to(tl.int64)
    token = (row % length).to(tl.int64)
    exists = row < num_rows  # False in the only CTAs of an empty tensor.
    block = tl.program_id(1)
    Q_BLOCKS: tl.constexpr = (HQ + HEADS - 1) // HEADS
    K_BLOCKS: tl.constexpr = (HKV + HEADS - 1) // HEADS
    heads = tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, BLOCK_D)[None, :]
    partner = column ^ 1 if INTERLEAVED else tl.where(column < R // 2, column + R // 2, column - R // 2)
    turns = (column < R) & exists
    cos += batch * cos_b + token * cos_l
    sin += batch * sin_b + token * sin_l
    if PDL:
        gdc_wait()
    if block < Q_BLOCKS:
        head = (block * HEADS + heads).to(tl.int64)
        mask = (head < HQ) & (column < D) & exists
        result = _rotated(
            q + batch * q_b + token * q_l + head * q_h, q_weight, cos, sin, column, partner, turns, mask, cos_w, sin_w,
            D, R, WIDTH, INTERLEAVED, EPS, WEIGHT_OFFSET, HAS_Q_WEIGHT,
        )  # fmt: skip
        out = q_out + batch * out_b + token * out_l + head * out_h + column
        tl.store(out, result.to(q_out.dtype.element_ty), mask=mask)
    else:
        if CONSECUTIVE:
            at = tl.load(positions).to(tl.int64) + token
        else:
            at = tl.load(positions + token * positions_l, mask=exists, other=0).to(tl.int64)
        at = tl.where(at < 0, at + cache_length, at)
        # Nothing is written outside of the caches.
        exists &= (at >= 0) & (at < cache_length)
        if block < Q_BLOCKS + K_BLOCKS:
            head = ((block - Q_BLOCKS) * HEADS + heads).to(tl.int64)
            mask = (head < HKV) & (column < D) & exists
            result = _rotated(
                k + batch * k_b + token * k_l + head * k_h, k_weight, cos, sin, column, partner, turns, mask, cos_w,
                sin_w, D, R, WIDTH, INTERLEAVED, EPS, WEIGHT_OFFSET, HAS_K_WEIGHT,
            )  # fmt: skip
            key = k_cache + batch * kc_b + at * kc_s + head * kc_h + column
            tl.store(key, result.to(k_cache.dtype.element_ty), mask=mask)
        else:
            head = ((block - Q_BLOCKS - K_BLOCKS) * HEADS + heads).to(tl.int64)
            mask = (head < HKV) & (column < D) & exists
            value = tl.load(v + batch * v_b + token * v_l + head * v_h + column, mask=mask, other=0.0)
            tl.store(v_cache + batch * vc_b + at * vc_s + head * vc_h + column, value, mask=mask)


@triton.jit
def rotary_cache_kernel(
    q, k, v,  # [batch, heads, L, D], the last dimension dense
    cos, sin,  # [batch, L, WIDTH]
    positions,  # [L], or [1] if CONSECUTIVE
    q_weight, k_weight,  # [D]
    q_out,  # [batch, HQ, L, D]
    k_cache, v_cache,  # [batch, HKV, S, D]
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, cos_b, cos_l, cos_w, sin_b, sin_l, sin_w, positions_l,
    out_b, out_h, out_l, kc_b, kc_h, kc_s, vc_b, vc_h, vc_s, num_rows, length, cache_length,
    HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, R: tl.constexpr, WIDTH: tl.constexpr,
    INTERLEAVED: tl.constexpr, CONSECUTIVE: tl.constexpr, EPS: tl.constexpr, WEIGHT_OFFSET: tl.constexpr,
    HAS_Q_WEIGHT: tl.constexpr, HAS_K_WEIGHT: tl.constexpr, HEADS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Rotates queries and keys, and writes keys and values to their caches."""
    _rotary_cache(
        q, k, v, cos, sin, positions, q_weight, k_weight, q_out, k_cache, v_cache,
        q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, cos_b, cos_l, cos_w, sin_b, sin_l, sin_w, positions_l,
        out_b, out_h, out_l, kc_b, kc_h, kc_s, vc_b, vc_h, vc_s, num_rows, length, cache_length,
        HQ, HKV, D, R, WIDTH, INTERLEAVED, CONSECUTIVE, EPS, WEIGHT_OFFSET, HAS_Q_WEIGHT, HAS_K_WEIGHT, HEADS, BLOCK_D,
        False,
    )  # fmt: skip


@triton.jit
def rotary_cache_pdl(
    q, k, v,  # [batch, heads, L, D], the last dimension dense
    cos, sin,  # [batch, L, WIDTH]
    positions,  # [L], or [1] if CONSECUTIVE
    q_weight, k_weight,  # [D]
    q_out,  # [batch, HQ, L, D]
    k_cache, v_cache,  # [batch, HKV, S, D]
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, cos_b, cos_l, cos_w, sin_b, sin_l, sin_w, positions_l,
    out_b, out_h, out_l, kc_b, kc_h, kc_s, vc_b, vc_h, vc_s, num_rows, length, cache_length,
    HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, R: tl.constexpr, WIDTH: tl.constexpr,
    INTERLEAVED: tl.constexpr, CONSECUTIVE: tl.constexpr, EPS: tl.constexpr, WEIGHT_OFFSET: tl.constexpr,
    HAS_Q_WEIGHT: tl.constexpr, HAS_K_WEIGHT: tl.constexpr, HEADS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Like ``rotary_cache_kernel``, and may be launched while the kernel in front of it runs."""
    _rotary_cache(
        q, k, v, cos, sin, positions, q_weight, k_weight, q_out, k_cache, v_cache,
        q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, cos_b, cos_l, cos_w, sin_b, sin_l, sin_w, positions_l,
        out_b, out_h, out_l, kc_b, kc_h, kc_s, vc_b, vc_h, vc_s, num_rows, length, cache_length,
        HQ, HKV, D, R, WIDTH, INTERLEAVED, CONSECUTIVE, EPS, WEIGHT_OFFSET, HAS_Q_WEIGHT, HAS_K_WEIGHT, HEADS, BLOCK_D,
        True,
    )  # fmt: skip

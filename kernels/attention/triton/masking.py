"""Which keys a query row attends to: device functions that every attention kernel shares.

A row at position ``p`` attends to key ``n`` where ``n < length``, if causal ``n <= p``, with a window
``n > p - WINDOW``, and where the mask tensor lets it. The modes of ``CAUSAL``: 0 none; 1 ``p = m``;
2 ``p = m + length - L_q``; 3 ``p`` is read.

With ``RING`` keys are counted by their positions, from the first token on, and the key at position ``n`` is in slot
``n % L_kv``: 1 where a block of keys is at most ``L_kv`` long, 2 where it may be longer.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def key_length(kv_len, b, L_kv, HAS_LEN: tl.constexpr, RING: tl.constexpr):
    """Number of keys of batch row ``b`` that hold something; in a ring positions alone say which do."""
    length = b * 0 + L_kv
    if RING != 0:
        # So far below the greatest number that a block of keys behind it can be counted.
        length = b * 0 + 2147479552
    if HAS_LEN:
        length = tl.maximum(tl.minimum(tl.load(kv_len + b).to(tl.int64), L_kv), 0).to(tl.int32)
    return length


@triton.jit
def query_positions(positions, stride_pb, stride_pm, b, m, m_end, L_q, length, CAUSAL: tl.constexpr):
    """Positions [rows] of query rows ``m``; a row from ``m_end`` on has position 0 where positions are read."""
    pos = m
    if CAUSAL == 3:
        where = positions + b.to(tl.int64) * stride_pb + m * stride_pm
        # A position beyond the keys means the same as the last key's, and fits 32 bits.
        found = tl.load(where, mask=m < m_end, other=0).to(tl.int64)
        pos = tl.maximum(tl.minimum(found, 2147483646), -1).to(tl.int32)
    if CAUSAL == 2:
        pos = m + (length - L_q)
    return pos


@triton.jit
def first_and_last(pos, m, m_end, CAUSAL: tl.constexpr):
    """Least and greatest position of the rows below ``m_end``."""
    if CAUSAL == 3:
        first = tl.min(tl.where(m < m_end, pos, 2147483646), 0)
        last = tl.max(tl.where(m < m_end, pos, -1), 0)
    else:
        first = tl.min(pos, 0)
        last = tl.minimum(tl.max(pos, 0), first + (m_end - 1 - tl.min(m, 0)))
    return first, last


@triton.jit
def keep_keys(n, pos, n_end, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Whether each row [rows] attends to each key ``n`` [keys] as far as positions say: [rows, keys]."""
    keep = (n[None, :] < n_end) & (pos[:, None] == pos[:, None])
    if CAUSAL != 0:
        keep = keep & (n[None, :] <= pos[:, None])
    if WINDOW > 0:
        keep = keep & (n[None, :] > pos[:, None] - WINDOW)
    return keep


@triton.jit
def masked_logits(
    s, keep, mask_rows, stride_mn, start, local_n, row_ok, n_end, qk_scale, SOFTCAP: tl.constexpr, MASK: tl.constexpr
):
    """Raw products [rows, keys] to logits in base 2: scaled, capped, masked by positions and mask tensor.

    Args:
        s: products of queries and keys.
        keep: what positions let through.
        mask_rows: pointers [rows, 1] to the mask at key 0.
        stride_mn: the mask's stride along the keys.
        start: first key of the block.
        local_n: keys of the block relative to ``start``.
        row_ok: rows that exist.
        n_end: end of the keys that may be read.
        qk_scale: scale of the logits times log2(e).
        SOFTCAP: 0 for none.
        MASK: 0 none, 1 bool, 2 float.
    """
    LOG2E: tl.constexpr = 1.4426950408889634
    if SOFTCAP > 0:
        # tanh(x) = 1 - 2 / (1 + exp(2 x)), which saturates without overflow.
        t = s * (qk_scale * (2.0 / SOFTCAP))
        s = (SOFTCAP * LOG2E) * (1.0 - 2.0 / (1.0 + tl.exp2(t)))
    else:
        s = s * qk_scale
    if MASK != 0:
        pointers = mask_rows + tl.cast(start, tl.int64) * stride_mn + local_n[None, :] * stride_mn
        readable = row_ok[:, None] & ((start + local_n)[None, :] < n_end)
        if MASK == 1:
            keep = keep & (tl.load(pointers, mask=readable, other=0) != 0)
        else:
            bias = tl.load(pointers, mask=readable, other=0.0).to(tl.float32)
            # The lowest finite number must stay finite in base 2: a row of nothing else is not a masked row.
            s = s + tl.where(bias == float("-inf"), bias, tl.maximum(bias * LOG2E, -3.0e38))
    return tl.where(keep, s, float("-inf"))


@triton.jit
def key_slots(start, local_n, L_kv, RING: tl.constexpr):
    """Where the keys ``start + local_n`` are: the first one's slot, and each one's relative to it."""
    first = start
    local = local_n
    if RING != 0:
        first = start % L_kv
        if RING == 1:
            local = tl.where(first + local_n >= L_kv, local_n - L_kv, local_n)
        else:
            local = (first + local_n) % L_kv - first
    return first, local


@triton.jit
def with_sink(m, weight, sink):
    """The sum of weights with that of a sink, a logit, and the factor on the sum of weighted values; any shape."""
    LOG2E: tl.constexpr = 1.4426950408889634
    s = sink.to(tl.float32) * LOG2E
    m_new = finite_or_zero(tl.maximum(m, s))
    alpha = tl.exp2(m - m_new)
    return weight * alpha + tl.exp2(s - m_new), alpha


@triton.jit
def finite_or_zero(m):
    """The running maximum to subtract: 0 for a row that has seen no key, so that no difference is ``inf - inf``."""
    return tl.where(m == float("-inf"), 0.0, m)

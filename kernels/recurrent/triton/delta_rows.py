"""A few tokens of the gated delta rule, one after another, with the state behind each stored to a ring."""

from __future__ import annotations

import triton
import triton.language as tl

from etcuda.kernels.recurrent.triton.delta_step import delta_step


@triton.jit
def _inputs(
    q, k, v, g, beta, token, q_token, k_token, v_token, g_token, b_token, keys, values, NORMALIZE: tl.constexpr
):
    """Of one token: query and key [BLOCK_K], value [BLOCK_V], decay and strength. All fp32."""
    query = tl.load(q + token * q_token, mask=keys, other=0.0).to(tl.float32)
    key = tl.load(k + token * k_token, mask=keys, other=0.0).to(tl.float32)
    value = tl.load(v + token * v_token, mask=values, other=0.0).to(tl.float32)
    decay = tl.exp(tl.load(g + token * g_token).to(tl.float32))
    strength = tl.load(beta + token * b_token).to(tl.float32)
    if NORMALIZE:
        query *= 1.0 / tl.sqrt(tl.sum(query * query, 0) + 1e-6)
        key *= 1.0 / tl.sqrt(tl.sum(key * key, 0) + 1e-6)
    return query, key, value, decay, strength


@triton.jit
def gated_delta_rows_kernel(
    q, k, v,  # [batch, length, heads, width]
    g, beta,  # [batch, length, HEADS]
    state,  # [batch, SLOTS, HEADS, K, V], dense
    positions,
    out,  # [batch, length, HEADS, V], dense
    length, scale, q_batch, q_token, q_head, q_dim, k_batch, k_token, k_head, k_dim, v_batch, v_token, v_head, v_dim,
    g_batch, g_token, g_head, b_batch, b_token, b_head,
    HEADS: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, V: tl.constexpr, NORMALIZE: tl.constexpr,
    SLOTS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """A CTA has BLOCK_V columns of the states of one head: it loads one state, and stores one a token."""
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = tl.program_id(1) % HEADS
    row = tl.arange(0, BLOCK_K)
    column = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    keys = row < K
    values = column < V
    inside = keys[:, None] & values[None, :]
    first = tl.load(positions).to(tl.int64)
    slot = state + (batch * SLOTS * HEADS + head) * K * V + row[:, None] * V + column[None, :]
    before = slot + (first + (SLOTS - 1)) % SLOTS * (HEADS * K * V)
    now = tl.where(first > 0, tl.load(before, mask=inside, other=0.0).to(tl.float32), 0.0)
    q += batch * q_batch + (head // GROUP) * q_head + row * q_dim
    k += batch * k_batch + (head // GROUP) * k_head + row * k_dim
    v += batch * v_batch + head * v_head + column * v_dim
    g += batch * g_batch + head * g_head
    beta += batch * b_batch + head * b_head
    out += (batch * length * HEADS + head) * V + column
    factor = tl.full((), scale, tl.float32)
    query, key, value, decay, strength = _inputs(
        q, k, v, g, beta, 0, q_token, k_token, v_token, g_token, b_token, keys, values, NORMALIZE
    )
    for token in range(length):
        # Of the token behind, in front of the stores of this one, which they could not pass.
        behind = tl.minimum(token + 1, length - 1)
        next_query, next_key, next_value, next_decay, next_strength = _inputs(
            q, k, v, g, beta, behind, q_token, k_token, v_token, g_token, b_token, keys, values, NORMALIZE
        )
        now, result = delta_step(now, query * factor, key, value, decay, strength)
        tl.store(slot + (first + token) % SLOTS * (HEADS * K * V), now.to(state.dtype.element_ty), mask=inside)
        tl.store(out + token * (HEADS * V), result.to(out.dtype.element_ty), mask=values)
        query, key, value, decay, strength = next_query, next_key, next_value, next_decay, next_strength

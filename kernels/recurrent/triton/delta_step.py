"""One token of the gated delta rule: the state goes once through the registers."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def delta_step(state, q, k, v, decay, beta):
    """The state [BLOCK_K, BLOCK_V] behind a token, and the token's output [BLOCK_V]. All fp32."""
    state = state * decay
    held = tl.sum(state * k[:, None], 0)
    state += k[:, None] * ((v - held) * beta)[None, :]
    return state, tl.sum(state * q[:, None], 0)


@triton.jit
def gated_delta_step_kernel(
    q, k, v,  # [batch, 1, heads, width]
    g, beta,  # [batch, 1, HEADS]
    state,  # [batch, HEADS, K, V], dense
    positions,
    out,  # [batch, 1, HEADS, V], dense
    scale, q_batch, q_head, q_dim, k_batch, k_head, k_dim, v_batch, v_head, v_dim, g_batch, g_head, b_batch, b_head,
    HEADS: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, V: tl.constexpr, NORMALIZE: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """A CTA has BLOCK_V columns of the state of one head."""
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = tl.program_id(1) % HEADS
    row = tl.arange(0, BLOCK_K)
    column = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = (row < K)[:, None] & (column < V)[None, :]
    at = state + ((batch * HEADS + head) * K + row[:, None]) * V + column[None, :]
    old = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    old = tl.where(tl.load(positions) > 0, old, 0.0)
    key_head = head // GROUP
    query = tl.load(q + batch * q_batch + key_head * q_head + row * q_dim, mask=row < K, other=0.0).to(tl.float32)
    key = tl.load(k + batch * k_batch + key_head * k_head + row * k_dim, mask=row < K, other=0.0).to(tl.float32)
    value = tl.load(v + batch * v_batch + head * v_head + column * v_dim, mask=column < V, other=0.0).to(tl.float32)
    if NORMALIZE:
        query *= 1.0 / tl.sqrt(tl.sum(query * query, 0) + 1e-6)
        key *= 1.0 / tl.sqrt(tl.sum(key * key, 0) + 1e-6)
    decay = tl.exp(tl.load(g + batch * g_batch + head * g_head).to(tl.float32))
    factor = tl.load(beta + batch * b_batch + head * b_head).to(tl.float32)
    new, result = delta_step(old, query * tl.full((), scale, tl.float32), key, value, decay, factor)
    tl.store(at, new.to(state.dtype.element_ty), mask=inside)
    tl.store(out + (batch * HEADS + head) * V + column, result.to(out.dtype.element_ty), mask=column < V)

"""The gated delta rule of many tokens, in the WY form (Yang et al., 2024), two kernels.

``delta_prepare_kernel`` does for every chunk of 64 tokens what does not depend on the state; ``delta_walk_kernel``
walks over the chunks with a state in registers. Products are on tensor cores, sums fp32. Rows of queries and keys are
not scaled before they are multiplied; their products are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from etcuda.kernels.recurrent.triton.gates import inverse_length

CHUNK = tl.constexpr(64)


@triton.jit
def invert(a, PRECISION: tl.constexpr):
    """The inverse of 1 + a, a [64, 64] zero on and above its diagonal: by substitution in blocks of 16, then halves."""
    across = tl.arange(0, 4)[:, None, None, None] == tl.arange(0, 4)[None, None, :, None]
    row = tl.arange(0, 16)[None, :, None]
    column = tl.arange(0, 16)[None, None, :]
    own = tl.sum(tl.where(across, tl.reshape(a, [4, 16, 4, 16]), 0.0), 2)
    blocks = tl.where(row == column, 1.0, 0.0) + tl.zeros([4, 16, 16], tl.float32)
    for index in range(1, 16):
        factors = tl.sum(tl.where(row == index, own, 0.0), 1)
        found = tl.sum(factors[:, :, None] * blocks, 1)
        blocks = tl.where(row == index, blocks - found[:, None, :], blocks)
    whole = tl.reshape(tl.where(across, blocks[:, :, None, :], 0.0), [CHUNK, CHUNK])
    row = tl.arange(0, CHUNK)[:, None]
    column = tl.arange(0, CHUNK)[None, :]
    corners = tl.where((row // 32 == column // 32) & (row // 16 != column // 16), a, 0.0)
    whole -= tl.dot(tl.dot(whole, corners, input_precision=PRECISION), whole, input_precision=PRECISION)
    corners = tl.where(row // 32 != column // 32, a, 0.0)
    whole -= tl.dot(tl.dot(whole, corners, input_precision=PRECISION), whole, input_precision=PRECISION)
    return whole


@triton.jit
def delta_prepare_kernel(
    q, k, v,  # [batch, length, heads, width]
    g, beta,  # [batch, length, HEADS]
    read,  # [batch, HEADS, chunks, CHUNK, K]: the keys that read the state
    written,  # [batch, HEADS, chunks, CHUNK, V]: what is written if the state is zero
    scores,  # [batch, HEADS, chunks, CHUNK, CHUNK]: of queries and keys of the chunk
    factors,  # [batch, HEADS, chunks, 3, CHUNK] fp32: of rows of q, of rows of k, and, everywhere, of the state
    length, chunks, scale, q_batch, q_token, q_head, q_dim, k_batch, k_token, k_head, k_dim, v_batch, v_token, v_head,
    v_dim, g_batch, g_token, g_head, b_batch, b_token, b_head,
    HEADS: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, V: tl.constexpr, NORMALIZE: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A CTA has one chunk of one head."""
    DTYPE: tl.constexpr = read.dtype.element_ty
    chunk = tl.program_id(0)
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = tl.program_id(1) % HEADS
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    there = token < length
    row = token.to(tl.int64)
    dim = tl.arange(0, BLOCK_K)
    column = tl.arange(0, BLOCK_V)
    place = (batch * HEADS + head) * chunks + chunk
    inner = tl.arange(0, CHUNK)

    decay = tl.load(g + batch * g_batch + row * g_token + head * g_head, mask=there, other=0.0).to(tl.float32)
    strength = tl.load(beta + batch * b_batch + row * b_token + head * b_head, mask=there, other=0.0).to(tl.float32)
    sums = tl.cumsum(decay, 0)
    whole = tl.sum(decay, 0)
    ok = there[:, None] & (dim < K)[None, :]
    at = batch * k_batch + row[:, None] * k_token + (head // GROUP) * k_head + dim[None, :] * k_dim
    keys = tl.load(k + at, mask=ok, other=0.0)
    at = batch * q_batch + row[:, None] * q_token + (head // GROUP) * q_head + dim[None, :] * q_dim
    queries = tl.load(q + at, mask=ok, other=0.0)
    key_factor = tl.full([CHUNK], 1.0, tl.float32)
    query_factor = tl.full([CHUNK], 1.0, tl.float32)
    if NORMALIZE:
        key_factor = inverse_length(keys.to(tl.float32))
        query_factor = inverse_length(queries.to(tl.float32))
    query_factor *= tl.full((), scale, tl.float32)

    # Above the diagonal the exponent is positive, and could overflow.
    below = inner[:, None] >= inner[None, :]
    between = tl.exp(tl.where(below, sums[:, None] - sums[None, :], float("-inf"))) * key_factor[None, :]
    pairs = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * between * query_factor[:, None]
    tl.store(scores + (place * CHUNK + inner[:, None]) * CHUNK + inner[None, :], pairs.to(DTYPE))
    system = tl.dot(keys, tl.trans(keys), input_precision=PRECISION) * between * (strength * key_factor)[:, None]
    inverse = invert(tl.where(inner[:, None] > inner[None, :], system, 0.0), PRECISION)

    past = tl.exp(sums)
    by_key = inverse * (strength * key_factor * past)[None, :]
    found = tl.dot(by_key.to(DTYPE), keys.to(DTYPE), input_precision=PRECISION)
    at = (place * CHUNK + inner[:, None]) * K + dim[None, :]
    tl.store(read + at, found.to(DTYPE), mask=(dim < K)[None, :])
    at = batch * v_batch + row[:, None] * v_token + head * v_head + column[None, :] * v_dim
    values = tl.load(v + at, mask=there[:, None] & (column < V)[None, :], other=0.0)
    found = tl.dot((inverse * strength[None, :]).to(DTYPE), values.to(DTYPE), input_precision=PRECISION)
    at = (place * CHUNK + inner[:, None]) * V + column[None, :]
    tl.store(written + at, found.to(DTYPE), mask=(column < V)[None, :])
    at = factors + place * 3 * CHUNK + inner
    tl.store(at, query_factor * past)
    tl.store(at + CHUNK, key_factor * tl.exp(whole - sums))
    tl.store(at + 2 * CHUNK, tl.exp(whole) + tl.zeros([CHUNK], tl.float32))


@triton.jit
def delta_walk_kernel(
    q, k,  # [batch, length, heads, K]
    read, written, scores, factors,  # of delta_prepare_kernel
    state,  # [batch, SLOTS, HEADS, K, V], dense
    positions,
    out,  # [batch, length, HEADS, V], dense
    length, chunks, q_batch, q_token, q_head, q_dim, k_batch, k_token, k_head, k_dim,
    HEADS: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, V: tl.constexpr, SLOTS: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A CTA has BLOCK_V columns of the state of one head, and walks over all chunks."""
    DTYPE: tl.constexpr = read.dtype.element_ty
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = tl.program_id(1) % HEADS
    dim = tl.arange(0, BLOCK_K)
    column = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    inner = tl.arange(0, CHUNK)
    inside = (dim < K)[:, None] & (column < V)[None, :]
    first = tl.load(positions).to(tl.int64)
    slot = state + (batch * SLOTS * HEADS + head) * K * V + dim[:, None] * V + column[None, :]
    before = slot + (first + (SLOTS - 1)) % SLOTS * (HEADS * K * V)
    now = tl.where(first > 0, tl.load(before, mask=inside, other=0.0).to(tl.float32), 0.0)
    q += batch * q_batch + (head // GROUP) * q_head + dim[None, :] * q_dim
    k += batch * k_batch + (head // GROUP) * k_head + dim[None, :] * k_dim
    out += (batch * length * HEADS + head) * V + column[None, :]
    for chunk in tl.range(0, chunks, num_stages=STAGES):
        place = (batch * HEADS + head) * chunks + chunk
        token = chunk * CHUNK + inner
        row = token.to(tl.int64)[:, None]
        there = (token < length)[:, None]
        keys = (dim < K)[None, :]
        reading = tl.load(read + (place * CHUNK + inner[:, None]) * K + dim[None, :], mask=keys, other=0.0)
        writing = tl.load(
            written + (place * CHUNK + inner[:, None]) * V + column[None, :], mask=(column < V)[None, :], other=0.0
        )
        pairs = tl.load(scores + (place * CHUNK + inner[:, None]) * CHUNK + inner[None, :])
        queries = tl.load(q + row * q_token, mask=there & keys, other=0.0)
        key = tl.load(k + row * k_token, mask=there & keys, other=0.0)
        at = factors + place * 3 * CHUNK
        query_factor = tl.load(at + inner)
        key_factor = tl.load(at + CHUNK + inner)
        decay = tl.load(at + 2 * CHUNK)
        rounded = now.to(DTYPE)
        new = writing.to(tl.float32) - tl.dot(reading, rounded, input_precision=PRECISION)
        result = tl.dot(queries.to(DTYPE), rounded, input_precision=PRECISION) * query_factor[:, None]
        result += tl.dot(pairs, new.to(DTYPE), input_precision=PRECISION)
        tl.store(out + row * (HEADS * V), result.to(out.dtype.element_ty), mask=there & (column < V)[None, :])
        scaled = (new * key_factor[:, None]).to(DTYPE)
        now = now * decay + tl.dot(tl.trans(key.to(DTYPE)), scaled, input_precision=PRECISION)
    last = slot + (first + length - 1) % SLOTS * (HEADS * K * V)
    tl.store(last, now.to(state.dtype.element_ty), mask=inside)

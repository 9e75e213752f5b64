"""The selective scan of Mamba 2: one token, and chunks of 64 as products of matrices (Dao and Gu, 2024)."""

from __future__ import annotations

import triton
import triton.language as tl

from etcuda.kernels.recurrent.triton.gates import softplus

CHUNK = tl.constexpr(64)


@triton.jit
def step_size(dt, bias, head, low, high, HAS_BIAS: tl.constexpr):
    """The step of a token: softplus of what is given, between two bounds."""
    dt = dt.to(tl.float32)
    if HAS_BIAS:
        dt += tl.load(bias + head).to(tl.float32)
    return tl.minimum(tl.maximum(softplus(dt), low), high)


@triton.jit
def selective_scan_kernel(
    x,  # [batch, length, HEADS, P]
    dt,  # [batch, length, HEADS]
    a, d, dt_bias,  # [HEADS], dense
    b, c,  # [batch, length, groups, N]
    state,  # [batch, SLOTS, HEADS, P, N], dense
    positions,
    out,  # [batch, length, HEADS, P], dense
    length, low, high, x_batch, x_token, x_head, x_dim, dt_batch, dt_token, dt_head, b_batch, b_token, b_group, b_dim,
    c_batch, c_token, c_group, c_dim,
    HEADS: tl.constexpr, GROUP: tl.constexpr, P: tl.constexpr, N: tl.constexpr, HAS_D: tl.constexpr,
    HAS_BIAS: tl.constexpr, SLOTS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
    ONE: tl.constexpr,
):  # fmt: skip
    """A CTA has BLOCK_P rows of the state of one head, and walks over all chunks, or takes one token."""
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = tl.program_id(1) % HEADS
    row = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    dim = tl.arange(0, BLOCK_N)
    # The state is transposed here, so that products have at least as many rows as tensor cores take.
    inside = (dim < N)[:, None] & (row < P)[None, :]
    first = tl.load(positions).to(tl.int64)
    slot = state + (batch * SLOTS * HEADS + head) * P * N + row[None, :] * N + dim[:, None]
    before = slot + (first + (SLOTS - 1)) % SLOTS * (HEADS * P * N)
    now = tl.where(first > 0, tl.load(before, mask=inside, other=0.0).to(tl.float32), 0.0)
    # Compiled programs pass numbers as fp64.
    low = tl.full((), low, tl.float32)
    high = tl.full((), high, tl.float32)
    rate = tl.load(a + head).to(tl.float32)
    skip = 0.0
    if HAS_D:
        skip = tl.load(d + head).to(tl.float32)
    x += batch * x_batch + head * x_head
    dt += batch * dt_batch + head * dt_head
    b += batch * b_batch + (head // GROUP) * b_group
    c += batch * c_batch + (head // GROUP) * c_group
    out += (batch * length * HEADS + head) * P
    if ONE:
        size = step_size(tl.load(dt), dt_bias, head, low, high, HAS_BIAS)
        value = tl.load(x + row * x_dim, mask=row < P, other=0.0).to(tl.float32)
        write = tl.load(b + dim * b_dim, mask=dim < N, other=0.0).to(tl.float32)
        read = tl.load(c + dim * c_dim, mask=dim < N, other=0.0).to(tl.float32)
        now = now * tl.exp(size * rate) + (value * size)[None, :] * write[:, None]
        result = tl.sum(now * read[:, None], 0) + value * skip
        tl.store(out + row, result.to(out.dtype.element_ty), mask=row < P)
    else:
        DTYPE: tl.constexpr = out.dtype.element_ty
        inner = tl.arange(0, CHUNK)
        below = inner[:, None] >= inner[None, :]
        for start in range(0, length, CHUNK):
            token = start + inner
            at = token.to(tl.int64)
            there = token < length
            given = tl.load(dt + at * dt_token, mask=there, other=0.0)
            size = tl.where(there, step_size(given, dt_bias, head, low, high, HAS_BIAS), 0.0)
            sums = tl.cumsum(size * rate, 0)
            whole = tl.sum(size * rate, 0)
            values = tl.load(
                x + at[:, None] * x_token + row[None, :] * x_dim, mask=there[:, None] & (row < P)[None, :], other=0.0
            ).to(tl.float32)
            ok = there[:, None] & (dim < N)[None, :]
            writes = tl.load(b + at[:, None] * b_token + dim[None, :] * b_dim, mask=ok, other=0.0).to(DTYPE)
            reads = tl.load(c + at[:, None] * c_token + dim[None, :] * c_dim, mask=ok, other=0.0).to(DTYPE)
            # Above the diagonal the exponent is positive, and could overflow.
            between = tl.exp(tl.where(below, sums[:, None] - sums[None, :], float("-inf")))
            pairs = tl.dot(reads, tl.trans(writes), input_precision=PRECISION) * between
            scaled = values * size[:, None]
            result = tl.dot(reads, now.to(DTYPE), input_precision=PRECISION) * tl.exp(sums)[:, None]
            result += tl.dot(pairs.to(DTYPE), scaled.to(DTYPE), input_precision=PRECISION)
            result += values * skip
            to = out + at[:, None] * (HEADS * P) + row[None, :]
            tl.store(to, result.to(DTYPE), mask=there[:, None] & (row < P)[None, :])
            late = (scaled * tl.exp(whole - sums)[:, None]).to(DTYPE)
            now = now * tl.exp(whole) + tl.dot(tl.trans(writes), late, input_precision=PRECISION)
    last = slot + (first + length - 1) % SLOTS * (HEADS * P * N)
    tl.store(last, now.to(state.dtype.element_ty), mask=inside)

"""A few tokens of the selective scan, one after another, with the state behind each stored to a ring."""

from __future__ import annotations

import triton
import triton.language as tl

from etcuda.kernels.recurrent.triton.scan import step_size


@triton.jit
def _inputs(
    x, dt, b, c, dt_bias, head, token, x_token, dt_token, b_token, c_token, rows, dims, low, high,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Of one token: its step, x [BLOCK_P], b and c [BLOCK_N]. All fp32."""
    size = step_size(tl.load(dt + token * dt_token), dt_bias, head, low, high, HAS_BIAS)
    value = tl.load(x + token * x_token, mask=rows, other=0.0).to(tl.float32)
    write = tl.load(b + token * b_token, mask=dims, other=0.0).to(tl.float32)
    read = tl.load(c + token * c_token, mask=dims, other=0.0).to(tl.float32)
    return size, value, write, read


@triton.jit
def selective_scan_rows_kernel(
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
    HAS_BIAS: tl.constexpr, SLOTS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A CTA has BLOCK_P rows of the states of one head: it loads one state, and stores one a token."""
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = tl.program_id(1) % HEADS
    row = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    dim = tl.arange(0, BLOCK_N)
    rows = row < P
    dims = dim < N
    inside = dims[:, None] & rows[None, :]
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
    x += batch * x_batch + head * x_head + row * x_dim
    dt += batch * dt_batch + head * dt_head
    b += batch * b_batch + (head // GROUP) * b_group + dim * b_dim
    c += batch * c_batch + (head // GROUP) * c_group + dim * c_dim
    out += (batch * length * HEADS + head) * P + row
    size, value, write, read = _inputs(
        x, dt, b, c, dt_bias, head, 0, x_token, dt_token, b_token, c_token, rows, dims, low, high, HAS_BIAS
    )
    for token in range(length):
        # Of the token behind, in front of the stores of this one, which they could not pass.
        behind = tl.minimum(token + 1, length - 1)
        next_size, next_value, next_write, next_read = _inputs(
            x, dt, b, c, dt_bias, head, behind, x_token, dt_token, b_token, c_token, rows, dims, low, high, HAS_BIAS
        )
        now = now * tl.exp(size * rate) + (value * size)[None, :] * write[:, None]
        result = tl.sum(now * read[:, None], 0) + value * skip
        tl.store(slot + (first + token) % SLOTS * (HEADS * P * N), now.to(state.dtype.element_ty), mask=inside)
        tl.store(out + token * (HEADS * P), result.to(out.dtype.element_ty), mask=rows)
        size, value, write, read = next_size, next_value, next_write, next_read

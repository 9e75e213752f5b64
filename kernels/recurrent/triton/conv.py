"""A causal convolution of each channel, with the inputs of the calls before in a ring by position."""

from __future__ import annotations

import triton
import triton.language as tl

from etcuda.kernels.recurrent.triton.gates import silu


@triton.jit
def causal_conv_kernel(
    x,  # [batch, length, channels]
    state,  # [batch, ROWS, channels], dense
    positions,
    weight,  # [channels, WIDTH], dense
    bias,  # [channels]
    out,  # [batch, length, channels], dense
    length, channels, x_batch, x_token, x_channel,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, HAS_BIAS: tl.constexpr, SILU: tl.constexpr, BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A CTA has BLOCK_L tokens of BLOCK_C channels. The one of the first tokens reads the ring, and writes it after."""
    block = tl.program_id(0)
    batch = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < channels
    first = tl.load(positions).to(tl.int64)
    token = block * BLOCK_L + tl.arange(0, BLOCK_L)
    x += batch * x_batch + channel.to(tl.int64)[None, :] * x_channel
    state += batch * ROWS * channels
    total = tl.zeros([BLOCK_L, BLOCK_C], tl.float32)
    for tap in tl.static_range(WIDTH):
        row = token + (tap - (WIDTH - 1))
        new = ((row >= 0) & (row < length))[:, None] & inside[None, :]
        held = ((row < 0) & (first + row >= 0))[:, None] & inside[None, :]
        slot = (first + row + ROWS) % ROWS
        value = tl.load(x + row.to(tl.int64)[:, None] * x_token, mask=new, other=0.0).to(tl.float32)
        value += tl.load(state + slot[:, None] * channels + channel[None, :], mask=held, other=0.0).to(tl.float32)
        factor = tl.load(weight + channel * WIDTH + tap, mask=inside, other=0.0).to(tl.float32)
        total += value * factor[None, :]
    if HAS_BIAS:
        total += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    if SILU:
        total = silu(total)
    at = (batch * length + token.to(tl.int64)[:, None]) * channels + channel[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=(token < length)[:, None] & inside[None, :])
    if block == 0:
        # Threads of this CTA have read what is overwritten.
        tl.debug_barrier()
        last = first + length - 1
        target = tl.arange(0, triton.next_power_of_2(ROWS))
        place = last - (last - target + ROWS) % ROWS - first
        kept = ((target < ROWS) & (place >= 0))[:, None] & inside[None, :]
        newest = tl.load(x + place[:, None] * x_token, mask=kept, other=0.0)
        ring = state + target[:, None] * channels + channel[None, :]
        tl.store(ring, newest.to(state.dtype.element_ty), mask=kept)

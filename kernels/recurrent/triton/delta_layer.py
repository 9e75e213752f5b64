"""One token of a gated delta net between its projections, in one kernel: the state goes once through the registers."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from etcuda.kernels.recurrent.triton.delta_step import delta_step
from etcuda.kernels.recurrent.triton.gates import silu, softplus


@triton.jit
def convolved(
    x, state, weight, bias, channel, inside, first, channels, x_channel, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """The newest inputs of some channels, and silu of their convolution, rounded as inputs are.

    In a ring of the filter's width no address depends on the position, so that no load waits for another one.
    """
    value = tl.load(x + channel * x_channel, mask=inside, other=0.0)
    total = value.to(tl.float32) * tl.load(weight + channel * WIDTH + WIDTH - 1, mask=inside, other=0.0).to(tl.float32)
    if ROWS == WIDTH:
        for slot in tl.static_range(WIDTH):
            held = tl.load(state + slot * channels + channel, mask=inside, other=0.0).to(tl.float32)
            # How far before this token a row's input is; that of the filter's width is the one that it leaves behind.
            back = (first - slot + WIDTH - 1) % WIDTH + 1
            for tap in tl.static_range(WIDTH - 1):
                factor = tl.load(weight + channel * WIDTH + tap, mask=inside, other=0.0).to(tl.float32)
                total += tl.where((back == WIDTH - 1 - tap) & (first >= back), held * factor, 0.0)
    else:
        for tap in tl.static_range(WIDTH - 1):
            place = first - (WIDTH - 1 - tap)
            there = inside & (place >= 0)
            held = tl.load(state + (place + ROWS) % ROWS * channels + channel, mask=there, other=0.0).to(tl.float32)
            total += held * tl.load(weight + channel * WIDTH + tap, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    return value, silu(total).to(x.dtype.element_ty).to(tl.float32)


@triton.jit
def _layer(
    x,  # [batch, 1, channels]: queries, keys and values
    z,  # [batch, 1, HEADS, V]
    b, a,  # [batch, 1, HEADS]
    weight,  # [channels, WIDTH], dense
    bias,  # [channels]
    a_log, dt_bias,  # [HEADS]
    norm,  # [V]
    conv,  # [batch, ROWS, channels], dense
    state,  # [batch, SLOTS, HEADS, K, V], dense
    positions,
    out,  # [batch, 1, HEADS, V], dense
    scale, eps, x_batch, x_channel, z_batch, z_head, z_dim, b_batch, b_head, a_batch, a_head,
    HEADS: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, V: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, SLOTS: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """A CTA has one head of values. The keys of a head are convolved by each of the heads that share it."""
    if PDL:
        gdc_launch_dependents()
        # A kernel further in front may have written the state.
        gdc_wait()
    DTYPE: tl.constexpr = out.dtype.element_ty
    KEYS: tl.constexpr = HEADS // GROUP * K
    CHANNELS: tl.constexpr = 2 * KEYS + HEADS * V
    batch = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS
    row = tl.arange(0, BLOCK_K)
    column = tl.arange(0, BLOCK_V)
    inside = (row < K)[:, None] & (column < V)[None, :]
    at = state + (batch * SLOTS * HEADS + head) * K * V + row[:, None] * V + column[None, :]
    if SLOTS == 1:
        # In front of the position, which its address does not depend on.
        old = tl.load(at, mask=inside, other=0.0)
        first = tl.load(positions).to(tl.int64)
    else:
        first = tl.load(positions).to(tl.int64)
        old = tl.load(at + (first + (SLOTS - 1)) % SLOTS * (HEADS * K * V), mask=inside, other=0.0)
    # All loads stand before all stores, which they could not pass.
    gate = tl.load(z + batch * z_batch + head * z_head + column * z_dim, mask=column < V, other=0.0).to(tl.float32)
    factor = tl.load(norm + column, mask=column < V, other=0.0).to(tl.float32)
    step = tl.load(a + batch * a_batch + head * a_head).to(tl.float32) + tl.load(dt_bias + head).to(tl.float32)
    rate = tl.exp(tl.load(a_log + head).to(tl.float32))
    beta = tl.sigmoid(tl.load(b + batch * b_batch + head * b_head).to(tl.float32))
    x += batch * x_batch
    conv += batch * ROWS * CHANNELS
    key_head = head // GROUP
    of_query = key_head * K + row
    of_key = KEYS + key_head * K + row
    of_value = 2 * KEYS + head * V + column
    new_query, query = convolved(
        x, conv, weight, bias, of_query, row < K, first, CHANNELS, x_channel, WIDTH, ROWS, HAS_BIAS
    )
    new_key, key = convolved(x, conv, weight, bias, of_key, row < K, first, CHANNELS, x_channel, WIDTH, ROWS, HAS_BIAS)
    new_value, value = convolved(
        x, conv, weight, bias, of_value, column < V, first, CHANNELS, x_channel, WIDTH, ROWS, HAS_BIAS
    )
    query *= tl.full((), scale, tl.float32) / tl.sqrt(tl.sum(query * query, 0) + 1e-6)
    key *= 1.0 / tl.sqrt(tl.sum(key * key, 0) + 1e-6)
    old = tl.where(first > 0, old.to(tl.float32), 0.0)
    new, result = delta_step(old, query, key, value, tl.exp(-rate * softplus(step)), beta)
    tl.store(at + first % SLOTS * (HEADS * K * V), new.to(state.dtype.element_ty), mask=inside)
    # Rounded where a recurrence and a norm one after another round.
    result = result.to(DTYPE).to(tl.float32)
    spread = tl.sum(tl.where(column < V, result * result, 0.0), 0) / V
    result = (result / tl.sqrt(spread + tl.full((), eps, tl.float32))).to(DTYPE).to(tl.float32)
    tl.store(out + (batch * HEADS + head) * V + column, (factor * result * silu(gate)).to(DTYPE), mask=column < V)
    # The row of this position held the one input that the filter has left behind. Other CTAs may read it meanwhile,
    # and do not use it. Of the heads that share a key head, the first one writes its inputs.
    ring = conv + first % ROWS * CHANNELS
    leads = head % GROUP == 0
    tl.store(ring + of_query, new_query.to(conv.dtype.element_ty), mask=(row < K) & leads)
    tl.store(ring + of_key, new_key.to(conv.dtype.element_ty), mask=(row < K) & leads)
    tl.store(ring + of_value, new_value.to(conv.dtype.element_ty), mask=column < V)


@triton.jit
def gated_delta_layer_kernel(
    x, z, b, a, weight, bias, a_log, dt_bias, norm, conv, state, positions, out, scale, eps, x_batch, x_channel,
    z_batch, z_head, z_dim, b_batch, b_head, a_batch, a_head,
    HEADS: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, V: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, SLOTS: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Launched behind the kernel in front."""
    _layer(
        x, z, b, a, weight, bias, a_log, dt_bias, norm, conv, state, positions, out, scale, eps, x_batch, x_channel,
        z_batch, z_head, z_dim, b_batch, b_head, a_batch, a_head, HEADS, GROUP, K, V, WIDTH, ROWS, SLOTS,
        HAS_BIAS, BLOCK_K, BLOCK_V, False,
    )  # fmt: skip


@triton.jit
def gated_delta_layer_pdl(
    x, z, b, a, weight, bias, a_log, dt_bias, norm, conv, state, positions, out, scale, eps, x_batch, x_channel,
    z_batch, z_head, z_dim, b_batch, b_head, a_batch, a_head,
    HEADS: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, V: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, SLOTS: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Launched while the kernel in front runs, for which it waits."""
    _layer(
        x, z, b, a, weight, bias, a_log, dt_bias, norm, conv, state, positions, out, scale, eps, x_batch, x_channel,
        z_batch, z_head, z_dim, b_batch, b_head, a_batch, a_head, HEADS, GROUP, K, V, WIDTH, ROWS, SLOTS,
        HAS_BIAS, BLOCK_K, BLOCK_V, True,
    )  # fmt: skip

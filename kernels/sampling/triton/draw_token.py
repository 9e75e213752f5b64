"""Draws a token. A CTA keeps its logits in registers from the first to the last look at them; thresholds are found by
CTAs that add up sums and wait for one another."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _arrive(arrived):
    """What this CTA stored is seen by those that wait for it."""
    tl.debug_barrier()
    tl.atomic_add(arrived, 1, sem="release", scope="gpu")


@triton.jit
def _wait(arrived, target):
    """Until as many have arrived."""
    count = tl.atomic_add(arrived, 0, sem="acquire", scope="gpu")
    while count < target:
        count = tl.atomic_add(arrived, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()


@triton.jit
def _offer(greatest, scores, index, VOCAB_SIZE: tl.constexpr, CTAS: tl.constexpr):
    """Stores this CTA's greatest number and the first place where it stands: below 2 ** 24, exact in fp32."""
    best = tl.max(scores, 0)
    first = tl.min(tl.where(scores == best, index, VOCAB_SIZE), 0)
    tl.store(greatest + tl.program_id(0), best)
    tl.store(greatest + CTAS + tl.program_id(0), first.to(tl.float32))


@triton.jit
def _winner(greatest, VOCAB_SIZE: tl.constexpr, CTAS: tl.constexpr, BLOCK_CTAS: tl.constexpr):
    """The greatest number of all CTAs, and the first place where it stands."""
    cta = tl.arange(0, BLOCK_CTAS)
    best = tl.load(greatest + cta, mask=cta < CTAS, other=-float("inf"), cache_modifier=".cg")
    first = tl.load(greatest + CTAS + cta, mask=cta < CTAS, other=VOCAB_SIZE, cache_modifier=".cg")
    most = tl.max(best, 0)
    place = tl.min(tl.where(best == most, first, VOCAB_SIZE), 0)
    # Logits that are no numbers are equal to none.
    return most, tl.minimum(place, VOCAB_SIZE - 1).to(tl.int64)


@triton.jit
def _threshold(
    numbers, weights, least, share, high, arrived, partials, rounds,
    CTAS: tl.constexpr, BLOCK_CTAS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The least integer so that the weights of numbers up to it reach ``least`` and a share of those up to ``high``;
    ``high`` if they do not. ``numbers`` and ``weights`` are of this CTA. With it, how often CTAs have waited.

    PARTS integers are tried at a time. All CTAs add the same sums in the same order, and so decide alike.
    """
    part = tl.arange(0, PARTS)
    cta = tl.arange(0, BLOCK_CTAS)[:, None]
    low = tl.full([], -1, tl.int32)
    wanted = tl.full([], float("inf"), tl.float32)
    while high - low > 1:
        step = (high - low + (PARTS - 1)) // PARTS
        # Two places in turn: whoever writes to one again waited for those that read it.
        place = partials + (rounds % 2) * (CTAS * PARTS)
        for each in tl.static_range(PARTS):
            here = tl.sum(tl.where(numbers <= tl.minimum(low + step * (each + 1), high), weights, 0.0), 0)
            tl.store(place + tl.program_id(0) * PARTS + each, here)
        _arrive(arrived)
        rounds += 1
        _wait(arrived, rounds * CTAS)
        at = place + cta * PARTS + part[None, :]
        sums = tl.sum(tl.load(at, mask=cta < CTAS, other=0.0, cache_modifier=".cg"), 0)
        total = tl.max(sums, 0)
        wanted = tl.where(wanted == float("inf"), least + share * total, wanted)
        tried = tl.minimum(low + step * (part + 1), high)
        reached = sums >= wanted
        is_high = tl.min(tl.where(reached, tried, high), 0)
        low = tl.max(tl.where(reached, low, tried), 0)
        high = is_high
    return high, rounds


@triton.jit
def _gumbel(index, seed, offset):
    """As of ``open_unit(state, 0, [vocab_size])``: the same bits."""
    zero = index * 0
    low = zero + (offset & 0xFFFFFFFF).to(tl.uint32).to(tl.int32, bitcast=True)
    high = zero + ((offset >> 32) & 0xFFFFFFFF).to(tl.uint32).to(tl.int32, bitcast=True)
    word, _, _, _ = tl.philox(seed, index, zero, low, high, 10)
    unit = tl.minimum((word.to(tl.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
    return -tl.log(-tl.log(unit))


@triton.jit
def _scaled(logits, allowed, index, temperature, is_warm, VOCAB_SIZE: tl.constexpr):
    """Which tokens may be drawn, and their logits over the temperature, minus infinity for the others."""
    inside = index < VOCAB_SIZE
    logit = tl.load(logits + index, mask=inside, other=-float("inf")).to(tl.float32)
    word = tl.load(allowed + index // 32, mask=inside, other=0)
    may = inside & (((word >> (index % 32)) & 1) != 0)
    return may, tl.where(may, tl.div_rn(logit, tl.where(is_warm, temperature, 1.0)), -float("inf"))


@triton.jit
def draw_token_kernel(
    logits,  # [VOCAB_SIZE]
    settings,  # temperature, top_p, min_p
    top_k, state, allowed,
    partials,  # [2, CTAS, PARTS], [2, 2, CTAS]
    arrived,  # 0
    out,  # [1]
    VOCAB_SIZE: tl.constexpr, CTAS: tl.constexpr, BLOCK_CTAS: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
    FAR: tl.constexpr, MAX_REGISTERS: tl.constexpr,
):  # fmt: skip
    """Draws a token; all CTAs must run at the same time."""
    cta = tl.program_id(0)
    index = cta * BLOCK + tl.arange(0, BLOCK)
    temperature = tl.load(settings)
    is_warm = temperature > 0
    may, value = _scaled(logits, allowed, index, temperature, is_warm, VOCAB_SIZE)
    greatest = partials + 2 * CTAS * PARTS
    _offer(greatest, value, index, VOCAB_SIZE, CTAS)
    _arrive(arrived)
    rounds = tl.full([], 1, tl.int32)
    if is_warm:
        _wait(arrived, CTAS)
        most, _ = _winner(greatest, VOCAB_SIZE, CTAS, BLOCK_CTAS)
        limit = tl.full([], FAR, tl.float32).to(tl.int32, bitcast=True)
        # How far a token is below the likeliest. Bits of numbers that are not negative are in the numbers' order.
        bits = tl.where(may, tl.minimum(most - value, FAR).to(tl.int32, bitcast=True), 0x7FFFFFFF)
        count = tl.load(top_k)
        if count > 0:
            limit, rounds = _threshold(
                bits, 1.0, count.to(tl.float32), 0.0, limit, arrived, partials, rounds, CTAS, BLOCK_CTAS, PARTS
            )
        top_p = tl.load(settings + 1)
        if top_p < 1:
            weights = tl.exp(-bits.to(tl.float32, bitcast=True))
            limit, rounds = _threshold(
                bits, weights, 0.0, top_p, limit, arrived, partials, rounds, CTAS, BLOCK_CTAS, PARTS
            )
        # Loaded again, for registers are few while thresholds are searched.
        may, value = _scaled(logits, allowed, index, temperature, is_warm, VOCAB_SIZE)
        below = most - value
        keep = may & (bits <= limit) & (below <= -tl.log(tl.load(settings + 2)))
        scores = tl.where(keep, _gumbel(index, tl.load(state), tl.load(state + 1)) - below, -float("inf"))
        greatest += 2 * CTAS
        _offer(greatest, scores, index, VOCAB_SIZE, CTAS)
        _arrive(arrived)
        rounds += 1
    if cta == 0:
        _wait(arrived, rounds * CTAS)
        _, token = _winner(greatest, VOCAB_SIZE, CTAS, BLOCK_CTAS)
        tl.store(out, token)

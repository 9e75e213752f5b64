"""Which experts a token is given to, and with what weights: one kernel, a CTA for each token."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _routing(
    logits, bias, routing, indices, scale, epsilon,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, PAIRS: tl.constexpr,
    SIGMOID: tl.constexpr, HAS_BIAS: tl.constexpr, NORMALIZE: tl.constexpr, SHARED: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    PER: tl.constexpr = EXPERTS // GROUPS
    COLUMNS: tl.constexpr = EXPERTS + 1 if SHARED == "sigmoid" else EXPERTS
    CHOICES: tl.constexpr = TOP_K if SHARED == "none" else TOP_K + 1
    NOTHING: tl.constexpr = float("-inf")
    token = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, BLOCK_G)[:, None]
    member = tl.arange(0, BLOCK_E)[None, :]
    expert = group * PER + member
    inside = (group < GROUPS) & (member < PER)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    values = tl.load(logits + token * COLUMNS + expert, mask=inside, other=NOTHING).to(tl.float32)
    if SIGMOID:
        scores = 1.0 / (1.0 + tl.exp(-values))
    else:
        powers = tl.exp(values - tl.max(values))
        scores = powers / tl.sum(powers)
    wanted = scores
    if HAS_BIAS:
        wanted += tl.load(bias + expert, mask=inside, other=0.0).to(tl.float32)
    wanted = tl.where(inside, wanted, NOTHING)
    if TOP_GROUPS < GROUPS:
        of_group = tl.max(wanted, 1)
        if PAIRS:
            best = tl.argmax(wanted, 1, tie_break_left=True)
            of_group += tl.max(tl.where(member == best[:, None], NOTHING, wanted), 1)
        number = tl.arange(0, BLOCK_G)
        of_group = tl.where(number < GROUPS, of_group, NOTHING)
        chosen = number < 0
        for _ in tl.static_range(TOP_GROUPS):
            best = tl.argmax(tl.where(chosen, NOTHING, of_group), 0, tie_break_left=True)
            chosen = chosen | (number == best)
        wanted = tl.where(chosen[:, None], wanted, NOTHING)
    wanted = tl.reshape(wanted, [BLOCK_G * BLOCK_E])
    scores = tl.reshape(scores, [BLOCK_G * BLOCK_E])
    place = tl.arange(0, BLOCK_G * BLOCK_E)
    choice = tl.arange(0, BLOCK_K)
    found = tl.zeros([BLOCK_K], tl.int32)
    shares = tl.zeros([BLOCK_K], tl.float32)
    for k in tl.static_range(TOP_K):
        best = tl.argmax(wanted, 0, tie_break_left=True)
        share = tl.sum(tl.where(place == best, scores, 0.0), 0)
        # In range whatever the logits are, such as NaN.
        number = tl.minimum(best // BLOCK_E * PER + best % BLOCK_E, EXPERTS - 1)
        found = tl.where(choice == k, number, found)
        shares = tl.where(choice == k, share, shares)
        wanted = tl.where(place == best, NOTHING, wanted)
    if NORMALIZE:
        shares = shares / (tl.sum(shares, 0) + epsilon)
    shares = shares * scale
    if SHARED != "none":
        share = 1.0
        if SHARED == "sigmoid":
            share = 1.0 / (1.0 + tl.exp(-tl.load(logits + token * COLUMNS + EXPERTS).to(tl.float32)))
        shares = tl.where(choice == TOP_K, share, shares)
        found = tl.where(choice == TOP_K, EXPERTS, found)
    at = token * CHOICES + choice
    tl.store(routing + at, shares, mask=choice < CHOICES)
    tl.store(indices + at, found, mask=choice < CHOICES)


@triton.jit
def routing_kernel(
    logits,  # [num_tokens, EXPERTS], one column more if SHARED is "sigmoid"
    bias,  # [EXPERTS]
    routing,  # [num_tokens, TOP_K] fp32, one column more unless SHARED is "none"
    indices,  # likewise, int32
    scale, epsilon,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, PAIRS: tl.constexpr,
    SIGMOID: tl.constexpr, HAS_BIAS: tl.constexpr, NORMALIZE: tl.constexpr, SHARED: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Scores, groups, the greatest, their weights; grid: tokens."""
    _routing(
        logits, bias, routing, indices, scale, epsilon, EXPERTS, TOP_K, GROUPS, TOP_GROUPS, PAIRS, SIGMOID, HAS_BIAS,
        NORMALIZE, SHARED, BLOCK_G, BLOCK_E, BLOCK_K, False,
    )  # fmt: skip


@triton.jit
def routing_pdl(
    logits,  # [num_tokens, EXPERTS], one column more if SHARED is "sigmoid"
    bias,  # [EXPERTS]
    routing,  # [num_tokens, TOP_K] fp32, one column more unless SHARED is "none"
    indices,  # likewise, int32
    scale, epsilon,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, PAIRS: tl.constexpr,
    SIGMOID: tl.constexpr, HAS_BIAS: tl.constexpr, NORMALIZE: tl.constexpr, SHARED: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``routing_kernel`` that may be launched while the kernel in front of it runs."""
    _routing(
        logits, bias, routing, indices, scale, epsilon, EXPERTS, TOP_K, GROUPS, TOP_GROUPS, PAIRS, SIGMOID, HAS_BIAS,
        NORMALIZE, SHARED, BLOCK_G, BLOCK_E, BLOCK_K, True,
    )  # fmt: skip

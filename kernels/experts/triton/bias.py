"""The biases of a token's experts."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def weighted_biases(indices, routing, bias, token, row, out_features, TOP_K: tl.constexpr):
    """Of rows of bias [num_experts, out_features] the sum over a token's experts, weighted by ``routing``; fp32."""
    sums = tl.zeros(row.shape, tl.float32)
    for choice in tl.static_range(TOP_K):
        pair = token * TOP_K + choice
        # Past the first level of cache: another kernel may still run that was launched before the experts were chosen.
        expert = tl.load(indices + pair, cache_modifier=".cg").to(tl.int64)
        share = tl.load(routing + pair, cache_modifier=".cg").to(tl.float32)
        sums += share * tl.load(bias + expert * out_features + row).to(tl.float32)
    return sums

"""What ``etcuda::draw_token`` computes, in plain PyTorch, by reductions alone: a sort costs more than small layers."""

from __future__ import annotations

import torch
from torch import Tensor

from etcuda.kernels.random.uniform import open_unit

# Logits that are so far below the greatest have no probability in fp32.
FAR = 100.0
# A threshold is searched in so many parts of an interval, so many times: to 100 * 64 ** -6, finer than fp32 next to 1.
_PARTS, _LEVELS = 64, 6


def draw_token_reference(logits: Tensor, settings: Tensor, top_k: Tensor, state: Tensor, allowed: Tensor) -> Tensor:
    """One token, by the race ``argmax(logits / temperature + gumbel)`` of those that the filters leave.

    Tokens whose logits are equal to the last one's that stays, stay too.

    Args:
        logits: [vocab_size] bfloat16, float16 or float32.
        settings: [3] float32: temperature, top_p, min_p.
        top_k: [1] int64.
        state: [2] int64, the seed and the offset of the random numbers.
        allowed: [ceil(vocab_size / 32)] int32.

    Returns:
        [1] int64.
    """
    vocab_size = logits.shape[0]
    temperature, top_p, min_p = settings.unbind()
    is_warm = temperature > 0
    bit = (allowed.unsqueeze(1) >> torch.arange(32, device=allowed.device, dtype=torch.int32)) & 1
    may = bit.reshape(-1)[:vocab_size] != 0
    values = torch.where(may, logits.float() / torch.where(is_warm, temperature, 1.0), -torch.inf)
    # How far a token is below the likeliest one: 0 and more.
    below = values.amax() - values
    near = below.clamp(max=FAR)
    weights = torch.where(may, torch.exp(-near), 0.0)
    count = torch.where(top_k > 0, top_k, vocab_size).to(torch.float32)
    limit = _threshold(near, may.to(torch.float32), count)
    weights = torch.where(near <= limit, weights, 0.0)
    limit = torch.minimum(limit, _threshold(near, weights, top_p * weights.sum()))
    keep = may & (near <= limit) & (below <= -torch.log(min_p))
    gumbel = -torch.log(-torch.log(open_unit(state, 0, [vocab_size])))
    scores = torch.where(keep, torch.where(is_warm, gumbel, 0.0) - below, -torch.inf)
    return scores.argmax(dim=0, keepdim=True)


def _threshold(near: Tensor, weights: Tensor, wanted: Tensor) -> Tensor:
    """The least number [1] so that the weights of those that are not above it reach what is wanted; ``FAR`` if all
    together do not."""
    low = torch.full((1,), -1.0, device=near.device)
    high = torch.full((1,), FAR, device=near.device)
    parts = torch.arange(1, _PARTS + 1, device=near.device, dtype=torch.float32) / _PARTS
    for _ in range(_LEVELS):
        tried = low + (high - low) * parts
        reached = torch.where(near.unsqueeze(0) <= tried.unsqueeze(1), weights, 0.0).sum(dim=1) >= wanted
        high = torch.minimum(high, torch.where(reached, tried, FAR).amin(dim=0, keepdim=True))
        low = torch.maximum(low, torch.where(reached, -1.0, tried).amax(dim=0, keepdim=True))
    return high

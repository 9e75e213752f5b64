"""Distributions that are computed from uniform numbers: host and GPU agree but for their ``log``, ``cos`` and so on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from etcuda.kernels.random.uniform import Size, bits, computed_in, open_unit, parameter, unit

# What a distribution takes: a number, or a tensor that broadcasts with the result.
Parameter = float | Tensor


def normal(
    state: Tensor,
    size: Size,
    mean: Parameter = 0.0,
    std: Parameter = 1.0,
    dtype: torch.dtype = torch.float32,
    draw: int = 0,
) -> Tensor:
    """Normal numbers, by Box and Muller: up to 6.8 standard deviations in float32, 8.5 in float64.

    Args:
        state: [2] int64, the seed and the offset.
        size: shape of the result.
        mean: of the numbers.
        std: standard deviation, not negative.
        dtype: of the result; computed in float32, float64 in itself.
        draw: number of the draw, added to the offset: other numbers for each.
    """
    inner = computed_in(dtype)
    radius = torch.sqrt(-2.0 * torch.log(open_unit(state, draw, size, inner)))
    turn = unit(state, draw, size, inner, word=2)
    made = radius * torch.cos(turn * parameter(2 * math.pi, turn))
    if isinstance(std, Tensor) or std != 1:
        made = made * parameter(std, made)
    if isinstance(mean, Tensor) or mean != 0:
        made = made + parameter(mean, made)
    return made.to(dtype)


def exponential(
    state: Tensor, size: Size, rate: float = 1.0, dtype: torch.dtype = torch.float32, draw: int = 0
) -> Tensor:
    """Exponential numbers, greater than 0: down to 2**-33 / rate in float32, and fine there, as a race wants it.

    Args:
        state: [2] int64, the seed and the offset.
        size: shape of the result.
        rate: 1 / mean.
        dtype: of the result; computed in float32, float64 in itself.
        draw: number of the draw, added to the offset.
    """
    made = -torch.log1p(-open_unit(state, draw, size, computed_in(dtype)))
    return (made if rate == 1 else made / parameter(rate, made)).to(dtype)


def log_normal(
    state: Tensor,
    size: Size,
    mean: float = 1.0,
    std: float = 2.0,
    dtype: torch.dtype = torch.float32,
    draw: int = 0,
) -> Tensor:
    """Numbers whose logarithm is normal. Arguments as of ``normal``."""
    return torch.exp(normal(state, size, mean, std, computed_in(dtype), draw)).to(dtype)


def cauchy(
    state: Tensor,
    size: Size,
    median: float = 0.0,
    sigma: float = 1.0,
    dtype: torch.dtype = torch.float32,
    draw: int = 0,
) -> Tensor:
    """Cauchy numbers: ``median + sigma * tan(pi * (u - 1 / 2))``. Arguments as of ``normal``."""
    u = open_unit(state, draw, size, computed_in(dtype))
    made = torch.tan((u - 0.5) * parameter(math.pi, u))
    return (made * parameter(sigma, u) + parameter(median, u)).to(dtype)


def geometric(state: Tensor, size: Size, p: float, dtype: torch.dtype = torch.float32, draw: int = 0) -> Tensor:
    """Number of trials up to the first success, of probability ``p`` in (0, 1]. Arguments as of ``normal``."""
    inner = computed_in(dtype)
    if p == 1:
        return torch.ones(size, dtype=dtype, device=state.device)
    u = open_unit(state, draw, size, inner)
    trials = torch.log(u) / parameter(math.log1p(-p), u)
    return torch.ceil(trials).clamp(min=1).to(dtype)


def bernoulli(state: Tensor, size: Size, p: Parameter, dtype: torch.dtype = torch.float32, draw: int = 0) -> Tensor:
    """1 with probability ``p``, else 0; the same on every device.

    Args:
        state: [2] int64, the seed and the offset.
        size: shape of the result.
        p: from 0 to 1.
        dtype: of the result.
        draw: number of the draw, added to the offset.
    """
    inner = computed_in(p.dtype) if isinstance(p, Tensor) else torch.float32
    u = open_unit(state, draw, size, inner)
    return (u < parameter(p, u)).to(dtype)


def multinomial(state: Tensor, p: Tensor, num_samples: int, replacement: bool = False, draw: int = 0) -> Tensor:
    """Indices, each with the probability that it has in ``p``.

    A race: of exponential times with rates ``p`` the first is i with probability p[i] / sum(p), and the order of the
    first n is a sample without replacement.

    Args:
        state: [2] int64, the seed and the offset.
        p: [..., categories] floating, not negative; rows need not sum to 1, but a row must have as many that are not
            0 as are drawn.
        num_samples: how many to draw of each row.
        replacement: whether an index may come again.
        draw: number of the draw, added to the offset.

    Returns:
        [..., num_samples] int64.
    """
    inner = computed_in(p.dtype)
    p = p.to(inner)
    if num_samples == 1:
        return torch.argmax(p / exponential(state, p.shape, dtype=inner, draw=draw), -1, keepdim=True)
    if replacement:
        size = (*p.shape[:-1], num_samples, p.shape[-1])
        return torch.argmax(p.unsqueeze(-2) / exponential(state, size, dtype=inner, draw=draw), -1)
    return torch.topk(p / exponential(state, p.shape, dtype=inner, draw=draw), num_samples, dim=-1)[1]


def randperm(state: Tensor, count: int, dtype: torch.dtype = torch.int64, draw: int = 0) -> Tensor:
    """The integers below ``count`` in a random order: that of 63 random bits each.

    Args:
        state: [2] int64, the seed and the offset.
        count: how many.
        dtype: of the result.
        draw: number of the draw, added to the offset.
    """
    return torch.sort(bits(state, draw, [count], 63))[1].to(dtype)

"""What ``etcuda::rotary_cache`` computes, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_cache_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    weight_offset: float,
    rotary_dim: int,
    interleaved: bool,
    consecutive: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries, and the caches with rotated keys and values in them; the arguments are the operator's."""

    def turned(x: Tensor, weight: Tensor | None) -> Tensor:
        normed = _norm(x.float(), weight, eps, weight_offset)
        return _rotate(normed, cos, sin, rotary_dim, interleaved).to(x.dtype)

    if consecutive:
        positions = positions + torch.arange(q.shape[2], device=positions.device)
    # Nothing in place, for programs for the host are compiled from this.
    places = [None, None, positions]
    keys = torch.ops.aten.index_put(k_cache, places, turned(k, k_weight).to(k_cache.dtype))
    values = torch.ops.aten.index_put(v_cache, places, v.to(v_cache.dtype))
    return turned(q, q_weight).contiguous(), keys, values


def _norm(x: Tensor, weight: Tensor | None, eps: float, weight_offset: float) -> Tensor:
    if eps == 0:
        return x
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return normed if weight is None else normed * (weight.float() + weight_offset)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, rotary_dim: int, interleaved: bool) -> Tensor:
    """x fp32 [batch, heads, L, head_dim]."""
    x, rest = x[..., :rotary_dim], x[..., rotary_dim:]
    half = rotary_dim // 2
    if interleaved:
        first, second = x[..., 0::2], x[..., 1::2]
        partner = torch.stack((-second, first), -1).flatten(-2)
    else:
        partner = torch.cat((-x[..., half:], x[..., :half]), -1)
    cos, sin = (_widened(table.float().unsqueeze(-3), rotary_dim, interleaved) for table in (cos, sin))
    return torch.cat((x * cos + partner * sin, rest), -1)


def _widened(table: Tensor, rotary_dim: int, interleaved: bool) -> Tensor:
    """A column of the table for each number of a head that is rotated."""
    if table.shape[-1] == rotary_dim:
        return table
    if interleaved:
        return torch.stack((table, table), -1).flatten(-2)
    return torch.cat((table, table), -1)

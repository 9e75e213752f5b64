"""A small denoising U-Net in torch alone: residual blocks with a time, self- and cross-attention, down and up."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from examples.zoo.base import Entry, numbers


def time_embedding(steps: Tensor, dim: int) -> Tensor:
    """[batch] to [batch, dim]: cosines and sines of the step at ``dim / 2`` frequencies."""
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(dim // 2, device=steps.device) / (dim // 2))
    angles = steps.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Residual(nn.Module):
    """Two convolutions, between them the time; norm and SiLU before each."""

    def __init__(self, inner: int, outer: int, time: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(8, inner), nn.GroupNorm(8, outer)])
        self.convs = nn.ModuleList([nn.Conv2d(inner, outer, 3, padding=1), nn.Conv2d(outer, outer, 3, padding=1)])
        self.time = nn.Linear(time, outer)
        self.skip = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """[batch, inner, height, width] and [batch, time] to [batch, outer, height, width]."""
        h = self.convs[0](nn.functional.silu(self.norms[0](x)))
        h = h + self.time(nn.functional.silu(time))[:, :, None, None]
        out: Tensor = self.skip(x) + self.convs[1](nn.functional.silu(self.norms[1](h)))
        return out


class Attention(nn.Module):
    """Attention of pixels to one another, then to a text."""

    def __init__(self, dim: int, context: int, heads: int = 4) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.own = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.cross = nn.MultiheadAttention(dim, heads, kdim=context, vdim=context, batch_first=True)
        self.up = nn.Linear(dim, 8 * dim)
        self.down = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """[batch, dim, height, width] and [batch, length, context] to the shape of the first."""
        batch, dim, height, width = x.shape
        h = self.norm(x).flatten(2).transpose(1, 2)
        normed = self.norms[0](h)
        h = h + self.own(normed, normed, normed, need_weights=False)[0]
        h = h + self.cross(self.norms[1](h), context, context, need_weights=False)[0]
        value, gate = self.up(self.norms[2](h)).chunk(2, dim=-1)
        h = h + self.down(value * nn.functional.gelu(gate))
        out: Tensor = x + h.transpose(1, 2).reshape(batch, dim, height, width)
        return out


class UNet(nn.Module):
    """Two resolutions, with attention at the lower one."""

    def __init__(self, channels: int = 4, dim: int = 32, context: int = 48) -> None:
        super().__init__()
        time = 4 * dim
        self.dim = dim
        self.time = nn.Sequential(nn.Linear(dim, time), nn.SiLU(), nn.Linear(time, time))
        self.first = nn.Conv2d(channels, dim, 3, padding=1)
        self.left = Residual(dim, dim, time)
        self.down = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1)
        self.middle = Residual(2 * dim, 2 * dim, time)
        self.attention = Attention(2 * dim, context)
        self.up = nn.Conv2d(2 * dim, dim, 3, padding=1)
        self.right = Residual(2 * dim, dim, time)
        self.norm = nn.GroupNorm(8, dim)
        self.last = nn.Conv2d(dim, channels, 3, padding=1)

    def forward(self, x: Tensor, steps: Tensor, context: Tensor) -> Tensor:
        """[batch, channels, height, width], [batch] int64, [batch, length, context] to the shape of the first."""
        time = self.time(time_embedding(steps, self.dim).to(x.dtype))
        left = self.left(self.first(x), time)
        h = self.attention(self.middle(self.down(left), time), context)
        h = self.up(nn.functional.interpolate(h, scale_factor=2.0, mode="nearest"))
        h = self.right(torch.cat([h, left], dim=1), time)
        out: Tensor = self.last(nn.functional.silu(self.norm(h)))
        return out


ENTRIES = [
    Entry(
        "unet",
        "diffusion",
        UNet,
        lambda: (numbers(2, 4, 16, 16), torch.tensor([3, 711]), numbers(2, 7, 48, seed=1)),
        (torch.float32, torch.float16),
    )
]

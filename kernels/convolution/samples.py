"""Calls of the operator, for the tests of the registry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def convolution_samples(device: str) -> list[dict[str, Any]]:
    """A strided convolution with everything behind it, and one in groups with nothing, whose steps cross taps."""
    return [
        _call(device, (2, 16, 7, 9), (24, 3, 3, 16), (2, 1), (1, 1), (1, 1), 1, everything=True),
        _call(device, (1, 6, 8, 7), (4, 3, 2, 3), (1, 2), (2, 0), (2, 1), 2, everything=False),
    ]


def _call(
    device: str,
    images: tuple[int, ...],
    filters: tuple[int, ...],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    everything: bool,
) -> dict[str, Any]:
    random = torch.Generator().manual_seed(sum(filters))

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(torch.float16).to(device)

    sizes = [
        (images[2 + i] + 2 * padding[i] - dilation[i] * (filters[1 + i] - 1) - 1) // stride[i] + 1 for i in range(2)
    ]
    residual = numbers(images[0], filters[0], *sizes).contiguous(memory_format=torch.channels_last)
    return {
        "x": numbers(*images).contiguous(memory_format=torch.channels_last),
        "weight": numbers(*filters) / 8,
        "bias": numbers(filters[0]) if everything else None,
        "residual": residual if everything else None,
        "stride": list(stride),
        "padding": list(padding),
        "dilation": list(dilation),
        "groups": groups,
        "relu": everything,
        "tf32": False,
        "block_m": 32,
        "block_n": 16,
        "block_k": 16,
        "num_stages": 2,
        "num_warps": 4,
    }

"""The rotation of the format ``tq4``: signs, then a Hadamard matrix. It is part of the format and has no parameter.

``rotate(x) = H (s * x) / sqrt(D)``, where H is the Hadamard matrix in Sylvester's order, ``H[i, j] = (-1) ** (number of
ones in i & j)``, and s are the signs of ``signs``. It is orthogonal, and its inverse is ``s * (H y) / sqrt(D)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Of the signs. Another one would be another format.
SEED = 0x9E3779B1
MULTIPLIER = 0x2C1B3C6D


def signs(head_dim: int, device: torch.device | None = None) -> Tensor:
    """1.0 or -1.0 for each number of a head, [head_dim] float32: bit 16 of a product and a shift of 32-bit integers."""
    x = (torch.arange(1, head_dim + 1, device=device) * SEED) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * MULTIPLIER) & 0xFFFFFFFF
    return 1.0 - 2.0 * ((x >> 16) & 1).to(torch.float32)


def hadamard(x: Tensor) -> Tensor:
    """H x along the last dimension, a power of two; fp32."""
    shape, length = x.shape, int(x.shape[-1])
    step = 1
    while step < length:
        pairs = x.reshape(*shape[:-1], length // (2 * step), 2, step)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        x = torch.stack((first + second, first - second), -2).reshape(shape)
        step *= 2
    return x


def rotate(x: Tensor) -> Tensor:
    """[..., head_dim] rotated, fp32."""
    width = int(x.shape[-1])
    return hadamard(x.to(torch.float32) * signs(width, x.device)) * float(width**-0.5)


def unrotate(x: Tensor) -> Tensor:
    """The inverse of ``rotate``, fp32."""
    width = int(x.shape[-1])
    return hadamard(x.to(torch.float32)) * signs(width, x.device) * float(width**-0.5)

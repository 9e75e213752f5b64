"""What ``etcuda::causal_conv`` computes, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS = ("none", "silu")


def causal_conv_reference(
    x: Tensor, state: Tensor, positions: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    """The convolution, and the ring of the last inputs; the arguments are the operator's."""
    length, width, rows = x.shape[1], weight.shape[1], state.shape[1]
    first, last = positions[0], positions[-1]
    before = first - width + torch.arange(1, width, device=x.device)
    held = state.index_select(1, before % rows)
    held = torch.where((before >= 0)[None, :, None], held, 0).to(x.dtype)
    padded = torch.cat((held, x), 1).float()
    total = padded.narrow(1, 0, length) * weight[:, 0].float()
    for tap in range(1, width):
        total = total + padded.narrow(1, tap, length) * weight[:, tap].float()
    if bias is not None:
        total = total + bias.float()
    out = (F.silu(total) if activation == "silu" else total).to(x.dtype)
    slot = torch.arange(rows, device=x.device)
    # The last position that a slot holds, and its place among the new tokens.
    place = last - (last - slot) % rows - first
    new = x.index_select(1, place.clamp(min=0)).to(state.dtype)
    return out, torch.where((place >= 0)[None, :, None], new, state)

"""Calls of the operator, for the tests of the registry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rotary_samples(device: str) -> list[dict[str, Any]]:
    """Calls of ``rotary_cache``: halves of whole heads, and interleaved parts of heads with norms."""
    plain = {"q_weight": None, "k_weight": None, "eps": 0.0, "weight_offset": 0.0}
    normed = {
        "q_weight": torch.linspace(0.5, 1.5, 24, device=device),
        "k_weight": torch.linspace(-0.5, 0.5, 24, device=device),
        "eps": 1e-6,
        "weight_offset": 1.0,
    }
    return [
        _call(device, 16)
        | plain
        | {"rotary_dim": 16, "interleaved": False, "consecutive": False, "heads": 1, "num_warps": 1, "pdl": 0},
        _call(device, 24)
        | normed
        | {"positions": torch.tensor([-4], device=device)}
        | {"rotary_dim": 10, "interleaved": True, "consecutive": True, "heads": 2, "num_warps": 1, "pdl": 0},
    ]


def _call(device: str, head_dim: int) -> dict[str, Any]:
    random = torch.Generator().manual_seed(0)

    def heads(count: int, length: int) -> Tensor:
        return torch.randn(2, length, count, head_dim, generator=random).to(torch.float16).to(device).transpose(1, 2)

    angles = torch.randn(3, 8 if head_dim == 16 else 5, generator=random).to(device)
    return {
        "q": heads(3, 3),
        "k": heads(1, 3),
        "v": heads(1, 3),
        "cos": angles.cos(),
        "sin": angles.sin(),
        "positions": torch.tensor([4, 0, 2], device=device),
        "k_cache": heads(1, 6).contiguous(),
        "v_cache": heads(1, 6).contiguous(),
    }

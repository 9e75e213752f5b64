"""Calls of the operator, for the tests of the registry."""

from __future__ import annotations

from typing import Any

import torch


def dense_samples(device: str) -> list[dict[str, Any]]:
    """Calls of ``dense_matvec``: a CTA for each tile, with a bias; CTAs that keep the activations, with a gate."""
    random = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(torch.float16).to(device)

    stepped = {"tokens": 4, "ctas": 0, "block_n": 4, "block_k": 32, "num_warps": 1, "pdl": 0}
    resident = {"tokens": 1, "ctas": 3, "block_n": 2, "block_k": 64, "num_warps": 1, "pdl": 0}
    return [
        {"x": numbers(3, 1, 72), "weight": numbers(13, 72), "bias": numbers(13), "activation": "none"} | stepped,
        {"x": numbers(1, 40), "weight": numbers(22, 40), "bias": None, "activation": "silu"} | resident,
    ]

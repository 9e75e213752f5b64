"""Calls of the operator, for the tests of the registry."""

from __future__ import annotations

from typing import Any

import torch


def sampling_samples(device: str) -> list[dict[str, Any]]:
    """Greedy, and with all filters: one CTA each, for the interpreter runs CTAs one after another."""
    random = torch.Generator().manual_seed(0)
    calls = []
    for vocab_size, temperature, top_k, dtype in ((200, 0.0, 0, torch.bfloat16), (333, 1.5, 40, torch.float32)):
        logits = (3 * torch.randn(vocab_size, generator=random)).to(dtype)
        allowed = torch.randint(-(2**31), 2**31, (-(-vocab_size // 32),), generator=random, dtype=torch.int32)
        calls.append(
            {
                "logits": logits.to(device),
                "settings": torch.tensor([temperature, 0.9, 0.05], device=device),
                "top_k": torch.tensor([top_k], device=device),
                "state": torch.tensor([7, 11], device=device),
                "allowed": allowed.to(device),
                "block": 512,
                "parts": 8,
            }
        )
    return calls

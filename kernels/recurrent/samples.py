"""Calls of the operators, for the tests of the registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _numbers(device: str) -> Callable[..., Tensor]:
    random = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=random).to(torch.float16).to(device)


def conv_samples(device: str) -> list[dict[str, Any]]:
    """Calls of ``causal_conv``: one token, a sequence's first ones, and a few with a longer ring."""
    numbers = _numbers(device)
    fixed = {"weight": numbers(20, 4), "bias": None, "activation": "silu"}
    return [
        fixed
        | {
            "x": numbers(2, 40, length)[:, :20].transpose(1, 2),
            "state": numbers(2, rows, 20),
            "positions": torch.arange(first, first + length, device=device),
        }
        for length, first, rows in ((1, 9, 4), (19, 0, 4), (3, 9, 8))
    ]


def delta_samples(device: str) -> list[dict[str, Any]]:
    """Calls of ``gated_delta_rule``: one token, two chunks behind others, and few enough for a ring of states."""
    numbers = _numbers(device)
    return [
        {
            "q": numbers(2, length, 1, 24),
            "k": numbers(2, length, 1, 24),
            "v": numbers(2, length, 2, 20),
            "g": -numbers(2, length, 2).float().abs(),
            "beta": numbers(2, length, 2).sigmoid(),
            "state": numbers(2, *slots, 2, 24, 20).float(),
            "positions": torch.arange(first, first + length, device=device),
            "normalize": True,
        }
        for length, first, slots in ((1, 3, ()), (70, 5, ()), (3, 5, (4,)))
    ]


def layer_samples(device: str) -> list[dict[str, Any]]:
    """Calls of ``gated_delta_layer``: a sequence's first token, a later one, and one with rings of states."""
    numbers = _numbers(device)
    return [
        {
            "x": numbers(2, 1, 2 * 24 + 2 * 20),
            "z": numbers(2, 1, 2, 20),
            "b": numbers(2, 1, 2),
            "a": numbers(2, 1, 2),
            "weight": numbers(88, 4),
            "bias": None,
            "a_log": numbers(2).float(),
            "dt_bias": numbers(2),
            "norm": numbers(20),
            "eps": 1e-6,
            "conv": numbers(2, 4 + sum(slots), 88),
            "state": numbers(2, *slots, 2, 24, 20).float(),
            "positions": torch.tensor([first], device=device),
            "pdl": 0,
        }
        for first, slots in ((0, ()), (6, ()), (7, (4,)))
    ]


def scan_samples(device: str) -> list[dict[str, Any]]:
    """Calls of ``selective_scan``: one token, two chunks behind others, and few enough for a ring of states."""
    numbers = _numbers(device)
    return [
        {
            "x": numbers(2, length, 4, 12),
            "dt": numbers(2, length, 4),
            "a": -numbers(4).float().abs(),
            "b": numbers(2, length, 2, 24),
            "c": numbers(2, length, 2, 24),
            "d": numbers(4),
            "dt_bias": numbers(4),
            "state": numbers(2, *slots, 4, 12, 24).float(),
            "positions": torch.arange(first, first + length, device=device),
            "dt_min": 0.0,
            "dt_max": 1.5,
        }
        for length, first, slots in ((1, 3, ()), (70, 5, ()), (3, 5, (4,)))
    ]

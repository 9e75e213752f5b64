"""Calls of the operator, for the tests of the registry."""

from __future__ import annotations

import math
from typing import Any

import torch

from etcuda.kernels.experts.configs import FewLaunch, ManyLaunch
from etcuda.kernels.formats.int4 import Int4Format


def experts_samples(device: str) -> list[dict[str, Any]]:
    """Weights as they are and of int4, few tokens and many."""
    few, many = FewLaunch(32, 32, 1, 64, 64, 1, 0), ManyLaunch(16, 16, 128, 4, 2, 32, 128, 4, 2, 0)
    return [
        _call(device, 2, 64, 32, False) | {"how": few.to_args()},
        _call(device, 2, 64, 32, True) | {"how": few.to_args()},
        _call(device, 9, 64, 32, False) | {"how": many.to_args()},
        _call(device, 9, 64, 32, True) | {"how": many.to_args(), "activation_dtype": "exact"},
    ]


def _call(device: str, tokens: int, hidden: int, width: int, quantized: bool) -> dict[str, Any]:
    """Five experts, two for each token, the last one chosen by none."""
    random = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        made = torch.randn(shape, generator=random) / math.sqrt(shape[-1])
        return made.to(torch.float16).to(device)

    call: dict[str, Any] = {
        "x": numbers(tokens, hidden) * math.sqrt(hidden),
        "indices": torch.rand(tokens, 4, generator=random).topk(2).indices.to(device),
        "routing": torch.rand(tokens, 2, generator=random).to(device),
    }
    for name, shape in (("gate_up", (5, 2 * width, hidden)), ("down", (5, hidden, width))):
        parts: dict[str, torch.Tensor] = {"qdata": numbers(*shape)}
        if quantized:
            groups = (*shape[:-1], shape[-1] // 32)
            parts = {
                "qdata": Int4Format.pack(torch.randint(0, 16, shape, generator=random)),
                "scale": ((torch.rand(groups, generator=random) + 1) / 64).to(torch.float16),
                "zero": torch.randint(4, 12, groups, generator=random).to(torch.uint8),
            }
        for part in ("qdata", "scale", "zero", "scale_step", "zero_step", "bias"):
            tensor = parts.get(part)
            call[name if part == "qdata" else f"{name}_{part}"] = None if tensor is None else tensor.to(device)
    size = 32 if quantized else 0
    return call | {"group_size": size, "down_group_size": size, "activation": "silu", "activation_dtype": "int8"}

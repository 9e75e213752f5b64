"""Calls of the activation operators, for the tests of the registry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _rows(device: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(torch.float16).to(device)


def norm_samples(device: str) -> list[dict[str, Any]]:
    """Calls of ``rms_norm_quantize``: everything is kept, or nothing; a tile holds a row, or half of it."""
    x, weight = _rows(device, 3, 2, 128), torch.linspace(0.5, 1.5, 128, device=device)
    norm = {"x": x, "eps": 1e-5, "num_warps": 1, "pdl": 0}
    return [
        norm | {"residual": x.flip(0), "weight": weight, "weight_offset": 0.0, "cast_first": True, "keep_h": True,
                "keep_y": True, "blocks": 4},
        norm | {"residual": None, "weight": None, "weight_offset": 1.0, "cast_first": False, "keep_h": False,
                "keep_y": False, "blocks": 2},
    ]  # fmt: skip


def norm_alone_samples(device: str) -> list[dict[str, Any]]:
    """Calls of ``rms_norm``: those of ``rms_norm_quantize``, which always keep the norm."""
    found = norm_samples(device)
    return [{name: value for name, value in each.items() if name != "keep_y"} for each in found]


def gate_samples(device: str) -> list[dict[str, Any]]:
    """Calls of ``gate_quantize``: gate and up apart, and side by side."""
    both = _rows(device, 5, 128)
    gate, up = both.chunk(2, -1)
    config = {"blocks": 8, "num_warps": 1, "pdl": 0}
    return [
        {"gate": gate, "up": up, "activation": "silu", "keep_y": True} | config,
        {"gate": both, "up": None, "activation": "gelu_tanh", "keep_y": False} | config,
    ]


def gate_reorder_samples(device: str) -> list[dict[str, Any]]:
    """Calls of ``gate_reorder``, whose rows are those of whole tiles."""
    return [
        {"gate": _rows(device, 64, 512), "up": None, "gate_activation": "silu", "activation_dtype": activation_dtype,
         "block_m": 64, "pdl": 0}
        for activation_dtype in ("int8", "exact")
    ]  # fmt: skip


def quantize_samples(device: str) -> list[dict[str, Any]]:
    """Calls of ``quantize_activation``."""
    return [{"x": _rows(device, 3, 2, 96), "pdl": 0}, {"x": _rows(device, 100, 32), "pdl": 0}]


def reorder_samples(device: str) -> list[dict[str, Any]]:
    """Calls of ``reorder_activation``, whose rows are those of whole tiles."""
    x = _rows(device, 2, 8, 256)
    return [
        {"x": x, "bits": bits, "activation_dtype": activation_dtype, "block_m": 16, "tiled": tiled, "pdl": 0}
        for bits, activation_dtype, tiled in ((4, "exact", 0), (8, "int8", 0), (4, "int8", 1))
    ]

"""What is measured: layers of Qwen3.5-35B-A3B, Falcon-H1-7B and Mamba 2 of 2.7B, and their random inputs."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

HIDDEN = 2048
HEADS, KEY_HEADS, DIM, WIDTH = 32, 16, 128, 4
CHANNELS = (2 * KEY_HEADS + HEADS) * DIM
# Queries, keys and values, z, b and a of a layer are one product.
IN_ROWS, OUT_COLUMNS = CHANNELS + HEADS * DIM + 2 * HEADS, HEADS * DIM
PREFILL = 8192


@dataclasses.dataclass(frozen=True)
class Scan:
    """A selective scan."""

    name: str
    heads: int
    head_dim: int
    groups: int
    state_dim: int


SCANS = (Scan("Falcon-H1-7B", 24, 128, 1, 256), Scan("Mamba2-2.7B", 80, 64, 1, 128))


# Tokens that drafts are verified with.
ROWS = (2, 4, 8, 16)


def in_ring(given: dict[str, Any], slots: int) -> dict[str, Any]:
    """Arguments whose states are rings of ``slots``, from which a sequence is taken back."""
    state, more = given["state"], dict[str, Any]()
    if "conv" in given:
        more["conv"] = given["conv"].repeat(1, slots, 1)[:, : WIDTH + slots - 1].contiguous()
    return given | more | {"state": state.unsqueeze(1).expand(-1, slots, *state.shape[1:]).contiguous()}


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> Tensor:
    """Random numbers on the GPU."""
    return (torch.randn(shape, device="cuda") * scale).to(dtype)


def delta_inputs(length: int, state_dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of ``gated_delta_rule``: views of one product, as behind a convolution."""
    q, k, v = normal(1, length, CHANNELS).split([KEY_HEADS * DIM, KEY_HEADS * DIM, HEADS * DIM], -1)
    return {
        "q": q.unflatten(-1, (-1, DIM)), "k": k.unflatten(-1, (-1, DIM)), "v": v.unflatten(-1, (-1, DIM)),
        "g": -normal(1, length, HEADS, dtype=torch.float32).abs() / 10, "beta": normal(1, length, HEADS).sigmoid(),
        "state": normal(1, HEADS, DIM, DIM, dtype=state_dtype, scale=0.1),
        "positions": torch.arange(1, length + 1, device="cuda"), "normalize": True,
    }  # fmt: skip


def layer_inputs(state_dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of ``gated_delta_layer``: views of one product."""
    x, z, b, a = normal(1, 1, IN_ROWS).split([CHANNELS, HEADS * DIM, HEADS, HEADS], -1)
    return {
        "x": x, "z": z.unflatten(-1, (-1, DIM)), "b": b, "a": a, "weight": normal(CHANNELS, WIDTH), "bias": None,
        "a_log": normal(HEADS, dtype=torch.float32), "dt_bias": normal(HEADS), "norm": normal(DIM), "eps": 1e-6,
        "conv": normal(1, WIDTH, CHANNELS), "state": normal(1, HEADS, DIM, DIM, dtype=state_dtype, scale=0.1),
        "positions": torch.tensor([9], device="cuda"),
    }  # fmt: skip


def scan_inputs(scan: Scan, length: int) -> dict[str, Any]:
    """Arguments of ``selective_scan``."""
    shape = (1, length, scan.groups, scan.state_dim)
    return {
        "x": normal(1, length, scan.heads, scan.head_dim), "dt": normal(1, length, scan.heads) - 3,
        "a": -normal(scan.heads, dtype=torch.float32).abs(), "b": normal(*shape), "c": normal(*shape),
        "d": normal(scan.heads), "dt_bias": normal(scan.heads),
        "state": normal(1, scan.heads, scan.head_dim, scan.state_dim, dtype=torch.float32),
        "positions": torch.arange(1, length + 1, device="cuda"), "dt_min": 0.0, "dt_max": float("inf"),
    }  # fmt: skip


def conv_inputs(length: int) -> dict[str, Any]:
    """Arguments of ``causal_conv``."""
    return {
        "x": normal(1, length, IN_ROWS)[..., :CHANNELS], "state": normal(1, WIDTH, CHANNELS),
        "positions": torch.arange(1, length + 1, device="cuda"), "weight": normal(CHANNELS, WIDTH), "bias": None,
        "activation": "silu",
    }  # fmt: skip

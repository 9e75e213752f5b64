"""Calls of the attention operators, for the tests of the registry."""

from __future__ import annotations

from typing import Any

import torch

from etcuda.kernels.attention.configs import SplitConfig, TiledConfig
from etcuda.kernels.attention.hopper.decode import ClusterConfig
from etcuda.kernels.attention.problem import FULL, LOWER_RIGHT, POSITIONS

# The operators' last arguments, behind the configuration.
_PLAIN: dict[str, Any] = {"sinks": None, "ring": False}


def split_samples(device: str) -> list[dict[str, Any]]:
    """Calls of ``attention_split``: one split and several, with and without masks, and a ring with sinks."""
    common = {"block_m": 16, "block_n": 16, "num_warps": 4, "num_stages": 2, "block_s": 2, "chunk_d": 16, "pdl": 0}
    return [
        _call(device, l_q=1) | vars(SplitConfig(**common, num_splits=1)) | _PLAIN,
        _call(device, l_q=3, causal=LOWER_RIGHT, window=20) | vars(SplitConfig(**common, num_splits=3)) | _PLAIN,
        _ring(device, l_q=2) | vars(SplitConfig(**common, num_splits=3)) | _with_sinks(device),
    ]


def cluster_samples(device: str) -> list[dict[str, Any]]:
    """Calls of ``attention_cluster``: with lengths and a window, and a ring with sinks."""
    common = vars(ClusterConfig(cluster=2, threads=128, unroll=2, pdl=0))
    return [
        _call(device, l_q=1) | common | _PLAIN,
        _call(device, l_q=2, causal=LOWER_RIGHT, window=20) | common | _PLAIN,
        _ring(device, l_q=2) | common | _with_sinks(device),
    ]


def tiled_samples(device: str) -> list[dict[str, Any]]:
    """Calls of ``attention_tiled``: three loops and one, with and without masks, and a ring with sinks."""
    common = {"block_m": 16, "block_n": 16, "num_warps": 4, "num_stages": 2, "section": 4}
    return [
        _call(device, l_q=21) | vars(TiledConfig(**common, one_loop=0)) | _PLAIN,
        _call(device, l_q=21, causal=LOWER_RIGHT) | vars(TiledConfig(**common, one_loop=1)) | _PLAIN,
        _ring(device, l_q=19) | vars(TiledConfig(**common, one_loop=0)) | _with_sinks(device),
    ]


def _call(device: str, l_q: int, causal: int = FULL, window: int = 0) -> dict[str, Any]:
    random = torch.Generator().manual_seed(0)

    def heads(count: int, length: int) -> torch.Tensor:
        return torch.randn(2, count, length, 16, generator=random).to(torch.float16).to(device)

    return {
        "q": heads(4, l_q),
        "k": heads(2, 40),
        "v": heads(2, 40),
        "mask": None,
        "kv_len": torch.tensor([40, 33], dtype=torch.int32, device=device),
        "positions": None,
        "scale": 0.25,
        "causal": causal,
        "window": window,
        "softcap": 0.0,
    }


def _ring(device: str, l_q: int) -> dict[str, Any]:
    changes = {
        "kv_len": None,
        "positions": torch.stack([torch.arange(l_q) + start for start in (0, 53)]).to(device),
        "softcap": 3.0,
    }
    return _call(device, l_q, POSITIONS, window=22) | changes


def _with_sinks(device: str) -> dict[str, Any]:
    return {"sinks": torch.linspace(-1.0, 2.0, 4, dtype=torch.float16, device=device), "ring": True}

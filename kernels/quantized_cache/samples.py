"""Calls of the operators, for the tests of the registry."""

from __future__ import annotations

from typing import Any

import torch

from etcuda.kernels.quantized_cache.codes import encode
from etcuda.kernels.quantized_cache.configs import QuantizedConfig
from etcuda.kernels.quantized_cache.formats import FORMATS, SCALE_DTYPE


def store_samples(device: str) -> list[dict[str, Any]]:
    """Calls of ``quantized_cache_store``: each format, places out of order, and one outside of the caches."""
    return [_store(device, name, width) for name, width in (("int8", 20), ("fp8", 32), ("tq4", 64))]


def attention_samples(device: str) -> list[dict[str, Any]]:
    """Calls of ``quantized_attention``: each format, one split and several, a ring with sinks, and lengths."""
    one, several = QuantizedConfig(16, 16, 4, 2, 1), QuantizedConfig(16, 16, 4, 2, 3)
    return [
        _attention(device, "int8", 20, one, l_q=3),
        _attention(device, "fp8", 32, several, l_q=1),
        _attention(device, "tq4", 64, several, l_q=2)
        | {"window": 20, "ring": True, "kv_len": None, "softcap": 3.0}
        | {"positions": torch.tensor([61, 62], device=device)}
        | {"sinks": torch.linspace(-1.0, 2.0, 4, dtype=torch.float16, device=device)},
    ]


def _store(device: str, format: str, head_dim: int) -> dict[str, Any]:
    random = torch.Generator().manual_seed(0)

    def caches() -> tuple[torch.Tensor, torch.Tensor]:
        codes = torch.randint(0, 256, (2, 2, 7, FORMATS[format].width(head_dim)), generator=random, dtype=torch.uint8)
        return codes.to(device), torch.rand(2, 2, 7, generator=random).to(SCALE_DTYPE).to(device)

    (k_cache, k_scale), (v_cache, v_scale) = caches(), caches()
    k, v = (torch.randn(2, 2, 3, head_dim, generator=random).to(torch.bfloat16).to(device) for _ in range(2))
    return {
        "k": k,
        "v": v,
        "positions": torch.tensor([5, 0, 4], device=device),
        "k_cache": k_cache,
        "k_scale": k_scale,
        "v_cache": v_cache,
        "v_scale": v_scale,
        "format": format,
    }


def _attention(device: str, format: str, head_dim: int, config: QuantizedConfig, l_q: int) -> dict[str, Any]:
    random = torch.Generator().manual_seed(1)
    coded = [encode(torch.randn(2, 2, 40, head_dim, generator=random), format) for _ in range(2)]
    (k, k_scale), (v, v_scale) = ((codes.to(device), scale.to(device)) for codes, scale in coded)
    return {
        "q": torch.randn(2, 4, l_q, head_dim, generator=random).to(torch.float16).to(device),
        "k": k,
        "k_scale": k_scale,
        "v": v,
        "v_scale": v_scale,
        "mask": None,
        "kv_len": torch.tensor([40, 33], dtype=torch.int32, device=device),
        "positions": None,
        "sinks": None,
        "format": format,
        "scale": head_dim**-0.5,
        "window": 0,
        "softcap": 0.0,
        "ring": False,
    } | vars(config)

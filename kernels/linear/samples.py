"""Calls of the operators on quantized weights, for the tests of the registry."""

from __future__ import annotations

from typing import Any

import torch

from etcuda.kernels.formats.registry import WeightFormat


def matvec_samples(record: WeightFormat, device: str) -> list[dict[str, Any]]:
    """Calls of ``int4_matvec`` and the like: the resident kernel, and the stepped one with a gate."""
    config = {"block_n": 4, "num_warps": 1, "num_stages": 1, "pdl": 0}
    return [
        _call(record, device, 1, 256) | config | {"tokens": 1, "ctas": 4, "blocks": 8, "activation": "none"},
        _call(record, device, 3, 256) | config | {"tokens": 4, "ctas": 0, "blocks": 4, "activation": "silu"},
    ]


def matmul_samples(record: WeightFormat, device: str) -> list[dict[str, Any]]:
    """Calls of ``int4_matmul`` and the like: a CTA for each tile, and CTAs that share tiles."""
    config = {
        "block_n": 64, "block_m": 16, "blocks": 4, "num_warps": 4, "num_stages": 2, "max_registers": 0,
        "warpgroups": 0, "pdl": 0,
    }  # fmt: skip
    return [
        _call(record, device, 5, 256) | config | {"activation_dtype": activation_dtype, "ctas": ctas}
        for activation_dtype, ctas in (("int8", 0), ("exact", 3))
    ]


def _call(record: WeightFormat, device: str, m: int, k: int, n: int = 80) -> dict[str, Any]:
    """Groups of 32 with float16 scales, and the offset that the format's tuner measures."""
    random = torch.Generator().manual_seed(0)
    stored = record.format_type(32, "fp16", record.tuned_offset).components(n, k)
    integers, dtype = stored["qdata"]
    limits = torch.iinfo(dtype)
    zero = torch.randint(4, 12, (n, k // 32), dtype=torch.uint8, generator=random)
    return {
        "x": torch.randn(m, k, generator=random).to(torch.float16).to(device),
        "qdata": torch.randint(limits.min, limits.max + 1, integers, dtype=dtype, generator=random).to(device),
        "scale": (torch.rand(n, k // 32, generator=random) / 100).to(torch.float16).to(device),
        "zero": zero.to(device) if "zero" in stored else None,
        "scale_step": None,
        "zero_step": None,
        "bias": torch.randn(n, generator=random).to(device),
        "group_size": 32,
    }

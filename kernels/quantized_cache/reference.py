"""What the operators compute, in plain PyTorch and fp32."""

from __future__ import annotations

import torch
from torch import Tensor

from etcuda.kernels.attention.problem import FULL, POSITIONS
from etcuda.kernels.attention.reference import attention_reference
from etcuda.kernels.quantized_cache.codes import decode, encode
from etcuda.kernels.quantized_cache.rotation import rotate, unrotate


def store_reference(
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    k_scale: Tensor,
    v_cache: Tensor,
    v_scale: Tensor,
    format: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The caches with keys and values in them; the arguments are those of ``etcuda::quantized_cache_store``."""
    places = [None, None, positions]
    found = []
    for x, cache, scales in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
        codes, scale = encode(x, format)
        # Nothing in place, for programs for the host are compiled from this.
        found.append(torch.ops.aten.index_put(cache, places, codes))
        found.append(torch.ops.aten.index_put(scales, places, scale))
    return found[0], found[1], found[2], found[3]


def quantized_attention_reference(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor,
    v: Tensor,
    v_scale: Tensor,
    mask: Tensor | None,
    kv_len: Tensor | None,
    positions: Tensor | None,
    sinks: Tensor | None,
    format: str,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    ring: bool = False,
) -> Tensor:
    """Attention over the vectors that the codes stand for; the arguments are those of ``etcuda::quantized_attention``.

    With ``tq4`` queries are rotated as keys are, and the result is rotated back.
    """
    is_rotated = format == "tq4"
    queries = rotate(q) if is_rotated else q.to(torch.float32)
    out = attention_reference(
        queries, decode(k, k_scale, format), decode(v, v_scale, format), mask, kv_len, positions, scale,
        FULL if positions is None else POSITIONS, window, softcap, sinks, ring,
    )  # fmt: skip
    return (unrotate(out) if is_rotated else out).to(q.dtype)

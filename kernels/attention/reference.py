"""Attention in plain PyTorch, computed in fp32 or better: what the kernels are compared with, and the lowering of what
none of them serves."""

from __future__ import annotations

import torch
from torch import Tensor

from etcuda.kernels.attention.problem import FULL, LOWER_RIGHT, POSITIONS


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    kv_len: Tensor | None = None,
    positions: Tensor | None = None,
    scale: float | None = None,
    causal: int = FULL,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    ring: bool = False,
) -> Tensor:
    """Softmax attention. A row that attends to no key gives zeros.

    Args:
        q: [batch, num_heads, L_q, head_dim].
        k: [batch, num_kv_heads, L_kv, head_dim].
        v: [batch, num_kv_heads, L_kv, head_dim_v].
        mask: broadcastable to [batch, num_heads, L_q, L_kv]; bool (true attends), or a number added to the logits.
        kv_len: [batch] integers; keys from there on do not exist.
        positions: [L_q] or [batch, L_q] integers, for ``causal=POSITIONS``.
        scale: factor on the logits; ``None`` is ``head_dim ** -0.5``.
        causal: FULL, UPPER_LEFT, LOWER_RIGHT (the last row attends to the last key) or POSITIONS.
        window: keys that a row sees, its own included; 0 for all.
        softcap: logits become ``softcap * tanh(logits / softcap)`` before the mask; 0 for none.
        sinks: [num_heads], a logit of each head that takes part in the sum of the weights and has no value (Xiao et
            al., "Efficient streaming language models with attention sinks", 2023, in the form of GPT-OSS).
        ring: the key at position ``n`` is in slot ``n % L_kv``, for ``causal=POSITIONS`` and rows that end with the
            last key.

    Returns:
        [batch, num_heads, L_q, head_dim_v] in the dtype of ``q``.
    """
    batch, heads, l_q, head_dim = q.shape
    kv_heads, l_kv = k.shape[1], k.shape[2]
    dtype = torch.promote_types(q.dtype, torch.float32)
    scale = head_dim**-0.5 if scale is None else scale
    rows = (q.to(dtype) * scale).reshape(batch, kv_heads, (heads // kv_heads) * l_q, head_dim)
    logits = torch.matmul(rows, k.to(dtype).transpose(-1, -2)).reshape(batch, heads, l_q, l_kv)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    keep = visible(l_q, l_kv, kv_len, positions, causal, window, q.device, ring)
    if mask is not None and mask.dtype == torch.bool:
        keep = mask if keep is None else keep & mask
    elif mask is not None:
        logits = logits + mask.to(dtype)
    if keep is not None:
        logits = logits.masked_fill(~keep, -torch.inf)
    if sinks is not None:
        extra = sinks.to(dtype).reshape(1, heads, 1, 1).expand(batch, heads, l_q, 1)
        weights = torch.softmax(torch.cat((logits, extra), dim=-1), dim=-1)[..., :-1]
    else:
        weights = torch.softmax(logits, dim=-1)
        if keep is not None or mask is not None:
            weights = weights.masked_fill((logits == -torch.inf).all(dim=-1, keepdim=True), 0.0)
    mixed = torch.matmul(weights.reshape(batch, kv_heads, -1, l_kv), v.to(dtype))
    return mixed.reshape(batch, heads, l_q, v.shape[-1]).to(q.dtype)


def visible(
    l_q: int,
    l_kv: int,
    kv_len: Tensor | None,
    positions: Tensor | None,
    causal: int,
    window: int,
    device: torch.device,
    ring: bool = False,
) -> Tensor | None:
    """What lengths and positions let through, as booleans broadcastable to [batch, 1, L_q, L_kv]; ``None`` for all."""
    n = torch.arange(l_kv, device=device)
    keep: Tensor | None = None
    if kv_len is not None:
        keep = (n < kv_len[:, None])[:, None, None, :]
    if causal == FULL:
        return keep
    if causal == POSITIONS:
        if positions is None:
            raise ValueError("causal=POSITIONS: expected positions, got None. Pass positions [L_q] or [batch, L_q].")
        p = positions[..., None] if positions.dim() == 1 else positions[:, None, :, None]
    else:
        p = torch.arange(l_q, device=device)[:, None]
    if ring:
        last = p[..., -1:, :]
        n = last - (last - n) % l_kv
    if causal == LOWER_RIGHT:
        p = p + ((l_kv if kv_len is None else kv_len[:, None, None, None]) - l_q)
    near = (n <= p) & (n >= 0) if ring else n <= p
    if window:
        near = near & (n > p - window)
    return near if keep is None else keep & near

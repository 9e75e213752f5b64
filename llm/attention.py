"""What transformers' models call for attention and for masks, registered as the implementation ``"etcuda"``.

Masks are computed from the positions of the queries and of the cached keys. Those of a cache that begins at position 0
are ``key <= position`` and, with a window, ``key > position - window``, which the passes recognise: no mask is read.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from etcuda.errors import CheckpointError

IMPLEMENTATION = "etcuda"
# What changes the result and is not computed here.
_NOT_SERVED = ("s_aux", "position_bias", "alibi", "head_mask", "attention_bias")
_called: contextvars.ContextVar[list[Any] | None] = contextvars.ContextVar("called", default=None)


@contextlib.contextmanager
def counting() -> Iterator[list[Any]]:
    """The modules that call ``attention`` while it is entered."""
    modules: list[Any] = []
    token = _called.set(modules)
    try:
        yield modules
    finally:
        _called.reset(token)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention over the cache, as ``AttentionInterface`` calls it.

    Args:
        module: the calling attention module.
        query: [batch, num_heads, L, head_dim].
        key: [batch, num_kv_heads, length of the cache, head_dim].
        value: like ``key``.
        attention_mask: [1, 1, L, length of the cache] bool.
        scaling: factor on the logits; ``None`` is ``head_dim ** -0.5``.
        softcap: logits become ``softcap * tanh(logits / softcap)``; ``None`` for none.
        more: what models pass beside that; what changes the result is refused.

    Returns:
        [batch, L, num_heads, head_dim], and no weights.

    Raises:
        CheckpointError: the model has attention sinks, a bias of positions or the like.
    """
    refused = [name for name in _NOT_SERVED if more.get(name) is not None]
    if refused:
        raise CheckpointError(
            f"{type(module).__name__}: expected attention of queries, keys, values and a mask alone, got "
            f"{', '.join(refused)} too. This architecture cannot be exported yet."
        )
    modules = _called.get()
    if modules is not None:
        modules.append(module)
    if softcap:
        out = _capped(query, key, value, attention_mask, scaling, softcap)
    else:
        grouped = query.shape[1] != key.shape[1]
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=grouped
        )
    return out.transpose(1, 2).contiguous(), None


def _capped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, softcap: float
) -> Tensor:
    # scaled_dot_product_attention has no soft cap.
    batch, heads, length, head_dim = query.shape
    kv_heads = key.shape[1]
    scale = head_dim**-0.5 if scaling is None else scaling
    rows = query.reshape(batch, kv_heads, (heads // kv_heads) * length, head_dim)
    logits = torch.matmul(rows, key.transpose(-1, -2)).float().reshape(batch, heads, length, -1)
    logits = softcap * torch.tanh(logits * (scale / softcap))
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    weights = torch.softmax(logits, dim=-1).to(value.dtype).reshape(batch, kv_heads, -1, key.shape[2])
    return torch.matmul(weights, value).reshape(batch, heads, length, -1)


def mask(
    *,
    q_offset: Tensor,
    kv_length: int,
    kv_offset: Tensor | int,
    mask_function: Callable[..., Tensor],
    attention_mask: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """Which keys each query sees, as ``AttentionMaskInterface`` calls it.

    Args:
        q_offset: positions of the queries, [L] integers: what our cache says that queries start at.
        kv_length: slots of the cache.
        kv_offset: 0, or position of each slot's key, [kv_length] integers, negative where there is none.
        mask_function: of (batch, head, query's position, key's position).
        attention_mask: refused; prompts are not padded.

    Returns:
        [1, 1, L, kv_length] bool.
    """
    if attention_mask is not None:
        raise CheckpointError("mask: expected prompts without padding, got a padding mask. Leave it out.")
    queries = q_offset.unsqueeze(1)
    if isinstance(kv_offset, Tensor):
        seen = mask_function(0, 0, queries, kv_offset.unsqueeze(0)) & (kv_offset >= 0)
    else:
        seen = mask_function(0, 0, queries, torch.arange(kv_length, device=queries.device))
    return seen[None, None]


def register() -> None:
    """Makes ``attn_implementation="etcuda"`` known to transformers. Idempotent."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, attention)
    AttentionMaskInterface.register(IMPLEMENTATION, mask)

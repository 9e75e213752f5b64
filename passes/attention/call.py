"""What an attention call is."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.fx import Node

import etcuda.kernels  # noqa: F401  registers the operators
from etcuda.kernels.attention.problem import FULL, UPPER_LEFT, AttentionProblem
from etcuda.passes.graph.meta import tensor_of
from etcuda.passes.graph.symbols import bounds, hint


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """One call of ``scaled_dot_product_attention``, as the kernels take it.

    ``q``, ``k``, ``v`` are [batch, heads, length, head_dim]; ``mask``, ``kv_len``, ``positions`` are optional tensors.
    """

    q: Node
    k: Node
    v: Node
    mask: Node | None
    kv_len: Node | None
    positions: Node | None
    scale: float
    causal: int
    window: int
    dropout: float

    @property
    def tensors(self) -> list[Node | None]:
        """The operators' tensor arguments, in order."""
        return [self.q, self.k, self.v, self.mask, self.kv_len, self.positions]

    @property
    def numbers(self) -> list[Any]:
        """The operators' other arguments but the configuration: scale, causal, window, softcap."""
        return [self.scale, self.causal, self.window, 0.0]


def read_call(node: Node) -> AttentionCall:
    """The arguments of a ``scaled_dot_product_attention`` node."""
    given = dict(zip(_NAMES, node.args, strict=False)) | dict(node.kwargs)
    q: Any = given["query"]
    scale: Any = given.get("scale")
    mask: Any = given.get("attn_mask")
    causal = UPPER_LEFT if given.get("is_causal") else FULL
    width = tensor_of(q).shape[-1]
    scale = float(width) ** -0.5 if scale is None else float(scale)
    dropout: Any = given.get("dropout_p", 0.0)
    key: Any = given["key"]
    value: Any = given["value"]
    return AttentionCall(q, key, value, mask, None, None, scale, causal, 0, float(dropout))


def problem_of(call: AttentionCall) -> AttentionProblem:
    """The call in numbers; dynamic sizes by their hints."""
    q, k = tensor_of(call.q), tensor_of(call.k)
    l_q = q.shape[2]
    return AttentionProblem(
        batch=hint(q.shape[0]),
        num_heads=int(q.shape[1]),
        num_kv_heads=int(k.shape[1]),
        head_dim=int(q.shape[3]),
        l_q=hint(l_q),
        l_kv=hint(k.shape[2]),
        dtype=q.dtype,
        causal=call.causal,
        window=call.window,
        has_mask=call.mask is not None,
        scale=call.scale,
        dropout=call.dropout,
        max_l_q=bounds(l_q)[1] if isinstance(l_q, torch.SymInt) else 0,
    )


_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")

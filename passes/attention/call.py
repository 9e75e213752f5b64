"""What an attention call is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node

import etcuda.kernels  # noqa: F401  registers the operators
from etcuda.kernels.attention.problem import FULL, UPPER_LEFT, AttentionProblem
from etcuda.passes.graph.calls import arguments
from etcuda.passes.graph.meta import tensor_of
from etcuda.torch_private import bounds, hint


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """One call of ``scaled_dot_product_attention``, as the kernels take it.

    Attributes:
        q: [batch, heads, L_q, head_dim].
        k: [batch, kv_heads, L_kv, head_dim].
        v: likewise.
        mask: bool or floating, broadcast to [batch, heads, L_q, L_kv]; ``None`` for none.
        kv_len: [batch], the number of keys; ``None`` for all.
        positions: of the query rows, [L_q] or [1 or batch, L_q]; for ``causal`` POSITIONS.
        scale: of the products.
        causal: FULL, UPPER_LEFT, LOWER_RIGHT or POSITIONS.
        window: keys that a row sees; 0 for all.
        dropout: the probability.
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

    def on(self, tensors: Mapping[Node, Node]) -> AttentionCall:
        """The call on other tensors: for each of its own the one in ``tensors``."""
        mask, kv_len, positions = (
            None if tensor is None else tensors[tensor] for tensor in (self.mask, self.kv_len, self.positions)
        )
        q, k, v = tensors[self.q], tensors[self.k], tensors[self.v]
        return dataclasses.replace(self, q=q, k=k, v=v, mask=mask, kv_len=kv_len, positions=positions)


def read_call(node: Node) -> AttentionCall:
    """The arguments of a ``scaled_dot_product_attention`` node."""
    given = arguments(node)
    scale = given["scale"]
    scale = float(tensor_of(given["query"]).shape[-1]) ** -0.5 if scale is None else float(scale)
    return AttentionCall(
        given["query"], given["key"], given["value"], given["attn_mask"], None, None, scale,
        UPPER_LEFT if given["is_causal"] else FULL, 0, float(given["dropout_p"]),
    )  # fmt: skip


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

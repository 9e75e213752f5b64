"""What an attention call is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node

import etcuda.kernels  # noqa: F401  registers the operators
from etcuda.kernels.attention.problem import FULL, POSITIONS, UPPER_LEFT, AttentionProblem
from etcuda.passes.graph.calls import arguments
from etcuda.passes.graph.meta import tensor_of
from etcuda.torch_private import bounds, hint


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """One call of ``scaled_dot_product_attention`` or of ``etcuda.attention``, as the kernels take it.

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
        softcap: on the logits; 0 for none.
        sinks: [heads], logits without a value; ``None`` for none.
        ring: the key at position ``n`` is in slot ``n % L_kv``.
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
    softcap: float = 0.0
    sinks: Node | None = None
    ring: bool = False

    @property
    def tensors(self) -> list[Node | None]:
        """The operators' tensor arguments, in order, but for the sinks."""
        return [self.q, self.k, self.v, self.mask, self.kv_len, self.positions]

    @property
    def numbers(self) -> list[Any]:
        """The operators' other arguments but the configuration: scale, causal, window, softcap."""
        return [self.scale, self.causal, self.window, self.softcap]

    @property
    def extras(self) -> dict[str, Any]:
        """The operators' arguments that are given by name."""
        found: dict[str, Any] = {} if self.sinks is None else {"sinks": self.sinks}
        return found | {"ring": True} if self.ring else found

    @property
    def operands(self) -> list[Node]:
        """Every tensor that the call reads."""
        return [tensor for tensor in (*self.tensors, self.sinks) if tensor is not None]

    def on(self, tensors: Mapping[Node, Node]) -> AttentionCall:
        """The call on other tensors: for each of its own the one in ``tensors``."""
        mask, kv_len, positions, sinks = (
            None if tensor is None else tensors[tensor]
            for tensor in (self.mask, self.kv_len, self.positions, self.sinks)
        )
        q, k, v = tensors[self.q], tensors[self.k], tensors[self.v]
        return dataclasses.replace(self, q=q, k=k, v=v, mask=mask, kv_len=kv_len, positions=positions, sinks=sinks)


# What models call: PyTorch's operator, and ours for what that has no arguments for.
CALLS = (torch.ops.aten.scaled_dot_product_attention.default, torch.ops.etcuda.attention.default)


def read_call(node: Node) -> AttentionCall:
    """The arguments of a node whose target is one of ``CALLS``."""
    given = arguments(node)
    if node.target is torch.ops.etcuda.attention.default:
        causal = FULL if given["positions"] is None else POSITIONS
        return AttentionCall(
            given["q"], given["k"], given["v"], given["mask"], None, given["positions"], float(given["scale"]),
            causal, given["window"], 0.0, float(given["softcap"]), given["sinks"], given["ring"],
        )  # fmt: skip
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

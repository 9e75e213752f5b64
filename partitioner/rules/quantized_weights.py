"""Quantised weights: products and look-ups, whole on every target."""

from __future__ import annotations

import torch

import etcuda.kernels  # noqa: F401  registers the operators
from etcuda.kernels.formats.registry import formats
from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.base import Rule, dtype_list
from etcuda.shims import compute_shim


class QuantizedLinearRule(Rule):
    """Claimed: a pass routes it to kernels or to its formula. The operators check their arguments themselves."""

    ops = tuple(each.linear_op for each in formats())

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses a weight of dynamic size, and targets without a matrix product in fp32."""
        products = compute_shim(view.side, "mm_out")
        if products is None or torch.float32 not in products.dtypes:
            got = dtype_list(() if products is None else products.dtypes)
            return Refusal(f"the runtime needs a matrix product of float32, got {got or 'none'}", {"dtypes": got})
        return _refuse_sizes(view)


class QuantizedEmbeddingRule(Rule):
    """Claimed: it becomes its formula, which reads the rows that are asked for alone."""

    ops = tuple(each.embedding_op for each in formats())

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses a weight of dynamic size."""
        return _refuse_sizes(view)


def _refuse_sizes(view: NodeView) -> Refusal | None:
    shape = tuple(view.tensor("qdata").shape)
    if all(isinstance(size, int) for size in shape):
        return None
    return Refusal(f"a quantised weight has a fixed size, got {shape}", {"shape": str(shape)})

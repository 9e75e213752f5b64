"""Scaled dot-product attention: whole on the GPU, decomposed on the host; what models call of ours, whole on both."""

from __future__ import annotations

import torch

import etcuda.kernels  # noqa: F401  registers the operators
from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.base import Rule, dtype_list
from etcuda.shims import compute_shim

aten = torch.ops.aten


class AttentionRule(Rule):
    """Claimed on the GPU, where a pass routes it to a kernel or to its formula; elsewhere ExecuTorch decomposes it.

    ``etcuda.attention``, which ExecuTorch does not know, is claimed on the host too.
    """

    ops = (aten.scaled_dot_product_attention.default, torch.ops.etcuda.attention.default)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses the host, dropout, dtypes without a matrix product, and shapes that the formula does not cover."""
        is_ours = view.op is torch.ops.etcuda.attention.default
        if view.side == "host" and not is_ours:
            return Refusal("attention has no kernel of its own on the host; it is decomposed", {"side": view.side})
        dropout = 0.0 if is_ours else view.arguments["dropout_p"]
        if dropout != 0.0:
            return Refusal(f"attention with dropout is not compiled, got dropout_p={dropout}", {"dropout_p": dropout})
        q, k, v = (view.tensor(name) for name in (("q", "k", "v") if is_ours else ("query", "key", "value")))
        products = compute_shim(view.side, "bmm_out")
        dtypes = {tensor.dtype for tensor in (q, k, v)}
        if products is None or not dtypes <= products.dtypes or len(dtypes) != 1:
            got = dtype_list(dtypes)
            return Refusal(f"attention takes one of bfloat16, float16, float32, got {got}", {"dtype": got})
        ranks = (q.dim(), k.dim(), v.dim())
        if ranks != (4, 4, 4):
            return Refusal(f"attention takes tensors of 4 dimensions, got {ranks}", {"ranks": ranks})
        fixed = (q.shape[1], k.shape[1], v.shape[1], q.shape[3], k.shape[3], v.shape[3])
        if not all(isinstance(size, int) for size in fixed):
            return Refusal(f"heads and head_dim are fixed numbers, got {fixed}", {"sizes": str(fixed)})
        if q.shape[1] % k.shape[1] or k.shape[1] != v.shape[1] or q.shape[0] != k.shape[0]:
            shapes = (tuple(q.shape[:2]), tuple(k.shape[:2]), tuple(v.shape[:2]))
            return Refusal(f"batch and heads of q, k and v do not fit each other, got {shapes}", {"sizes": str(shapes)})
        return None

"""Convolutions: a shim on the host, generated kernels on the GPU."""

from __future__ import annotations

import torch

from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.base import Rule, dtype_list
from etcuda.shims import compute_shim

aten = torch.ops.aten

_GENERATED = frozenset({torch.float16, torch.bfloat16, torch.float32})


class ConvolutionRule(Rule):
    """One to three spatial dimensions, any groups, floating dtypes; the pass decompose_conv prepares the rest."""

    ops = (aten.convolution.default,)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses dtypes, ranks and symbolic channel counts without a kernel."""
        tensor, weight = view.tensor("input"), view.tensor("weight")
        shim = compute_shim("host", "convolution")
        dtypes = shim.dtypes if shim is not None and view.side == "host" else _GENERATED
        if tensor.dtype not in dtypes:
            return Refusal(f"convolution takes {dtype_list(dtypes)}, got {tensor.dtype}", {"dtype": tensor.dtype})
        if tensor.dim() != weight.dim() or not 3 <= tensor.dim() <= 5:
            got = f"input rank {tensor.dim()} and weight rank {weight.dim()}"
            return Refusal(f"convolution takes a batched input of rank 3 to 5, got {got}", {"rank": tensor.dim()})
        if any(isinstance(size, torch.SymInt) for size in (*weight.shape, tensor.shape[1])):
            return Refusal(f"convolution takes a weight of static shape, got {tuple(weight.shape)}")
        return None

"""Convolutions: a shim on the host, generated kernels on the GPU."""

from __future__ import annotations

import torch

from etcuda.backend.shims import compute_shim
from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.base import Rule

aten = torch.ops.aten


class ConvolutionRule(Rule):
    """One to three spatial dimensions, any groups, floating dtypes."""

    ops = (aten.convolution.default,)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses dtypes without a kernel."""
        tensor = view.tensor("input")
        shim = compute_shim("host", "convolution")
        dtypes = shim.dtypes if shim is not None and view.side == "host" else _CUDA_DTYPES
        if tensor.dtype not in dtypes:
            taken = ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))
            return Refusal(f"convolution takes {taken}, got {tensor.dtype}", {"dtype": tensor.dtype})
        if view.arguments["transposed"]:
            return Refusal("transposed convolution has no kernel, got transposed=True", {"transposed": True})
        return None


_CUDA_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32})

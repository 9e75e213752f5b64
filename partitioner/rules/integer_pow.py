"""Powers of integers."""

from __future__ import annotations

import torch

from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.base import Rule, library_call

aten = torch.ops.aten


class IntegerPowRule(Rule):
    """Floating powers are generated; integer ones only for a constant exponent that is not negative."""

    ops = (aten.pow.Tensor_Tensor, aten.pow.Tensor_Scalar, aten.pow.Scalar)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses an integer result with an exponent that is a tensor."""
        dtype = next(view.result_tensors).dtype
        if dtype.is_floating_point:
            return None
        exponent = view.arguments["exponent"]
        if isinstance(exponent, int) and exponent >= 0:
            return None
        got = "a tensor" if isinstance(exponent, torch.Tensor) else exponent
        return library_call(view, f"a power with result {dtype} takes a constant exponent, got {got}", dtype=dtype)

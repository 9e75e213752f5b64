"""Scans of any length, binary search, and what follows from them."""

from __future__ import annotations

import torch

from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.base import Rule, size_along, unbounded

aten = torch.ops.aten


class ScanRule(Rule):
    """Cumulative operators."""

    ops = (
        aten.cummax.default,
        aten.cummin.default,
        aten.cumprod.default,
        aten.cumsum.default,
        aten.logcumsumexp.default,
    )

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses a dimension without a bound on the GPU."""
        return unbounded(view, size_along(view.tensor("self"), view.arguments["dim"]))


class CompactionRule(Rule):
    """Operators that count what is set before each place."""

    ops = (aten.masked_scatter.default, aten.nonzero_static.default, aten.repeat_interleave.Tensor)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses a size without a bound on the GPU."""
        tensor = view.tensor("repeats" if "repeats" in view.arguments else "self")
        return unbounded(view, tensor.numel())


class SearchRule(Rule):
    """Binary search, and counts in bins."""

    ops = (
        aten.bucketize.Scalar,
        aten.bucketize.Tensor,
        aten.histc.default,
        aten.searchsorted.Scalar,
        aten.searchsorted.Tensor,
    )

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses a number between two integers, which has no place in their dtype."""
        value = view.arguments["self"]
        if not isinstance(value, float) or value.is_integer():
            return None
        dtype = view.tensor("boundaries" if "boundaries" in view.arguments else "sorted_sequence").dtype
        if dtype.is_floating_point:
            return None
        because = f"{view.op} takes a whole number for a sequence of {dtype}, got {value}"
        return Refusal(because, {"dtype": dtype, "self": value})

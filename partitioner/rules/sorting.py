"""Sorts of any length, and selection by a sort."""

from __future__ import annotations

import torch

from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.base import Rule, size_along, unbounded

aten = torch.ops.aten


class SortRule(Rule):
    """Sorts, the first of a sort, and what is found at a place of a sort."""

    ops = (
        aten.argsort.default,
        aten.argsort.stable,
        aten.kthvalue.default,
        aten.median.default,
        aten.median.dim,
        aten.mode.default,
        aten.nanmedian.default,
        aten.nanmedian.dim,
        aten.sort.default,
        aten.sort.stable,
        aten.topk.default,
    )

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses a dimension without a bound on the GPU, and a place that is symbolic."""
        k = view.arguments.get("k", 0)
        if not isinstance(k, int):
            return Refusal(f"{view.op} takes a fixed k, got {k}", {"k": k})
        tensor = view.tensor("self")
        return unbounded(view, size_along(tensor, view.arguments.get("dim")))

"""Operators on raw bits."""

from __future__ import annotations

import torch

from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.base import Rule, library_call

aten = torch.ops.aten


class BitcastRule(Rule):
    """A view as another dtype of the same width is free."""

    ops = (aten.view.dtype, aten.view_copy.dtype)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses a change of width."""
        before, after = view.tensor("self").dtype, view.arguments["dtype"]
        if before.itemsize == after.itemsize:
            return None
        return library_call(view, f"a view of {before} as {after}, which changes the width", before=before, after=after)

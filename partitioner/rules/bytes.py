"""Operators that treat narrow integers or raw bits in a way of their own."""

from __future__ import annotations

import torch

from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.base import Rule, library_call

aten = torch.ops.aten


class CatRule(Rule):
    """On the host, bytes are joined by a library kernel."""

    ops = (aten.cat.default, aten.concat.default, aten.concatenate.default)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses 8-bit integers on the host."""
        dtypes = {tensor.dtype for tensor in view.input_tensors}
        if view.side == "host" and dtypes <= {torch.int8, torch.uint8}:
            return library_call(view, f"cat of {', '.join(sorted(map(str, dtypes)))} on the host", dtypes=dtypes)
        return None


class BitcastRule(Rule):
    """A view as another dtype of the same width is free."""

    ops = (aten.view.dtype, aten.view_copy.dtype)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses a change of width."""
        before, after = view.tensor("self").dtype, view.arguments["dtype"]
        if before.itemsize == after.itemsize:
            return None
        return library_call(view, f"a view of {before} as {after}, which changes the width", before=before, after=after)

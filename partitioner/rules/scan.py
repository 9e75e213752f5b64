"""Scans and sorts: generated on the GPU within limits, library calls on the host."""

from __future__ import annotations

import torch

from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.base import Rule, library_call, overloads
from etcuda.torch_private import bounds

aten = torch.ops.aten

_SCAN = 4096  # a longer scan may be split, which needs a zeroed workspace
_SORT = 512  # of Inductor's own choosing


def _length(view: NodeView) -> int | torch.SymInt:
    tensor, dim = view.tensor("self"), view.arguments["dim"]
    return tensor.shape[dim] if tensor.dim() else 1


def _refuse_length(view: NodeView, limit: int) -> Refusal | None:
    length = _length(view)
    if view.side == "host":
        return library_call(view, f"{view.op} on the host", length=length)
    _, bound = bounds(length)
    if bound is not None and bound <= limit:
        return None
    most = "unbounded" if bound is None else f"up to {bound}"
    return library_call(view, f"{view.op} takes up to {limit} elements, got {length} ({most})", length=length)


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
        """Refuses on the host, and long scans."""
        return _refuse_length(view, _SCAN)


class SortRule(Rule):
    """Sorts of a bounded, short dimension."""

    ops = (aten.sort.default, aten.sort.stable, aten.argsort.default, aten.argsort.stable)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses on the host, and long sorts."""
        return _refuse_length(view, _SORT)


class SelectionRule(Rule):
    """Operators that Inductor hands to the library whatever their arguments."""

    ops = overloads(aten.topk, aten.kthvalue, aten.median, aten.nanmedian, aten.mode)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses always."""
        return library_call(view, str(view.op))


class SearchRule(Rule):
    """Binary search has generated code on the GPU alone."""

    ops = overloads(aten.searchsorted, aten.bucketize)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses on the host."""
        return library_call(view, f"{view.op} on the host") if view.side == "host" else None

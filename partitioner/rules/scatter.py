"""Writes through indices."""

from __future__ import annotations

import math

import torch

from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.base import Rule, size_along, unbounded
from etcuda.torch_private import bounds

aten = torch.ops.aten

_PAIRS = 1 << 28  # a product on the GPU looks at every pair of an element and a source


class IndexPutRule(Rule):
    """Plain writes and sums."""

    ops = (aten.index_put.default, aten._unsafe_index_put.default)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses masks, whose places depend on data, unless one number is written there."""
        masks = [each for each in view.arguments["indices"] if each is not None and each.dtype in _MASKS]
        values = view.tensor("values")
        if masks and (view.arguments["accumulate"] or values.numel() != 1):
            shape = tuple(values.shape)
            return Refusal(f"{view.op} takes one number for a mask, got values of shape {shape}", {"values": shape})
        return None


_MASKS = frozenset({torch.bool, torch.uint8})


class IndexAddRule(Rule):
    """Sums of slices."""

    ops = (aten.index_add.default,)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses nothing."""
        return None


class ScatterRule(Rule):
    """Plain writes and every reduction."""

    ops = (
        aten.index_reduce.default,
        aten.scatter.reduce,
        aten.scatter.src,
        aten.scatter.value,
        aten.scatter.value_reduce,
        aten.scatter_add.default,
        aten.scatter_reduce.two,
    )

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses large products, and extremes of a dimension without a bound, on the GPU."""
        reduce = view.arguments.get("reduce")
        if view.side == "host" or reduce in (None, "add", "sum", "mean"):
            return None
        index = view.tensor("index")
        length = size_along(index, view.arguments["dim"] if index.dim() > 1 else 0)
        return _refuse_product(view, length) if reduce in ("prod", "multiply") else unbounded(view, length)


def _refuse_product(view: NodeView, length: int | torch.SymInt) -> Refusal | None:
    sizes = [*view.tensor("self").shape, length]
    most = [bounds(size)[1] for size in sizes]
    pairs = math.prod(each for each in most if each is not None)
    if None not in most and pairs <= _PAIRS:
        return None
    got = "no bound" if None in most else str(pairs)
    return Refusal(
        f"{view.op} with a product on the GPU takes up to {_PAIRS} pairs of an element and a source, got {got}",
        {"pairs": got},
    )


class EmbeddingBagRule(Rule):
    """Sums, means and maxima of rows of a table."""

    ops = (aten._embedding_bag.default, aten._embedding_bag_forward_only.default)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses a use of other results than the bags, and maxima of indices without a bound on the GPU."""
        others = sorted(str(user.args[1]) for user in view.node.users if user.users and user.args[1] != 0)
        if others:
            return Refusal(f"{view.op} is served for its bags, result 0; the program uses result {', '.join(others)}")
        return unbounded(view, view.tensor("indices").shape[0]) if view.arguments["mode"] == 2 else None

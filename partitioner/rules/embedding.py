"""Table look-up."""

from __future__ import annotations

import torch

from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.base import Rule, library_call

aten = torch.ops.aten


class EmbeddingRule(Rule):
    """Claimed unless its gradient is declared sparse, which changes the lowering even where there is no gradient."""

    ops = (aten.embedding.default,)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses sparse=True."""
        return library_call(view, "embedding with sparse=True", sparse=True) if view.arguments["sparse"] else None

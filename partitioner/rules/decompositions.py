"""Operators that a pass turns into formulas."""

from __future__ import annotations

from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.base import Rule
from etcuda.passes.decompositions.table import DECOMPOSITION_OF


class DecompositionRule(Rule):
    """Claimed: Inductor generates code for the call, or for its formula."""

    ops = tuple(DECOMPOSITION_OF)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses what the formula does not serve."""
        record = DECOMPOSITION_OF[view.op]
        if not record.applies(view.arguments):
            return None
        reason = record.refuse(view.arguments)
        return None if reason is None else Refusal(reason, {"op": str(view.op)})

"""Operators that Inductor decomposes into calls which are refused."""

from __future__ import annotations

import torch

from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.base import Rule, library_call

aten = torch.ops.aten


class LcmRule(Rule):
    """Becomes gcd, which is a library call."""

    ops = (aten.lcm.default,)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses always."""
        return library_call(view, f"{view.op} becomes gcd")


class PutRule(Rule):
    """Becomes a write through an index."""

    ops = (aten.put.default,)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses accumulation, which not every dtype has."""
        if not view.arguments["accumulate"]:
            return None
        return library_call(view, f"{view.op} with accumulate=True becomes an addition through indices")

"""Random numbers."""

from __future__ import annotations

import torch

from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.base import Rule, overloads

aten = torch.ops.aten


class RandomRule(Rule):
    """Nothing random is claimed: the runtime keeps no generator."""

    ops = overloads(
        aten.bernoulli,
        aten.multinomial,
        aten.normal,
        aten.normal_functional,
        aten.poisson,
        aten.rand,
        aten.rand_like,
        aten.randint,
        aten.randint_like,
        aten.randn,
        aten.randn_like,
        aten.randperm,
    )

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses always."""
        return Refusal(f"{view.op} draws random numbers, and the runtime keeps no generator", {"op": str(view.op)})


class DropoutRule(Rule):
    """Dropout is claimed when it does nothing."""

    ops = (aten.native_dropout.default, aten.dropout.default)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses dropout in training."""
        if not view.arguments["train"]:
            return None
        p = view.arguments.get("p")
        return Refusal(
            f"dropout in training (p={p}) draws random numbers, and the runtime keeps no generator; "
            "call model.eval() before the export",
            {"p": p},
        )

"""Random numbers."""

from __future__ import annotations

import torch

import etcuda.kernels.random  # noqa: F401  defines the operator
from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.random_draws import refuse_draw
from etcuda.partitioner.rules.base import Rule, overloads

aten = torch.ops.aten


class PhiloxRule(Rule):
    """Philox is a function of its arguments: claimed always."""

    ops = (torch.ops.etcuda.philox_bits.default, torch.ops.etcuda.philox_below.default)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses nothing."""
        return None


class RandomRule(Rule):
    """Nothing random is claimed: what the option ``random_seed`` serves has been replaced by then."""

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
        return Refusal(_reason(view), {"op": str(view.op)})


def _reason(view: NodeView) -> str:
    if view.config.options.random_seed is None:
        return (
            f"{view.op} draws random numbers, and the runtime keeps no generator; with the option random_seed the "
            "program keeps one"
        )
    why = refuse_draw(view.node) or "it stands inside of control flow"
    return f"{view.op} draws random numbers in a way that random_seed does not serve: {why}"


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

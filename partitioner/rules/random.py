"""Random numbers."""

from __future__ import annotations

import torch

import etcuda.kernels.random  # noqa: F401  defines the operators
from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.random_draws import refuse_draw
from etcuda.partitioner.rules.base import Rule

aten = torch.ops.aten

# Arguments without which an operator that may draw random numbers draws none.
_SWITCHES = ("train", "training", "dropout_p", "dropout")


def refuse_random(view: NodeView) -> Refusal | None:
    """Refuses what draws random numbers, as PyTorch's tags say, for operators without a rule of their own."""
    if torch.Tag.nondeterministic_seeded not in view.op.tags:
        return None
    switches = [view.arguments[name] for name in _SWITCHES if name in view.arguments]
    if switches and not any(switches):
        return None
    return Refusal(_reason(view), {"op": str(view.op)})


def _reason(view: NodeView) -> str:
    if view.config.options.random_seed is None:
        return (
            f"{view.op} draws random numbers, and the runtime keeps no generator; with the option random_seed the "
            "program keeps one"
        )
    why = refuse_draw(view.node) or (
        "it stands inside of a loop, each turn of which would draw the same, or the program was not lowered by "
        "to_edge_transform_and_lower"
    )
    return f"{view.op} draws random numbers in a way that random_seed does not serve: {why}"


class PhiloxRule(Rule):
    """Philox is a function of its arguments: claimed always."""

    ops = (torch.ops.etcuda.philox_bits.default, torch.ops.etcuda.philox_below.default)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses nothing."""
        return None


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

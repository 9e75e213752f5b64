"""Operators of our own kernels, which a model may call itself: whole on the GPU, their formula on the host."""

from __future__ import annotations

import etcuda.kernels  # noqa: F401  registers the kernels
from etcuda.kernels.common.registry import find, records
from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.base import Rule


class KernelRule(Rule):
    """Claimed where the kernel serves the call, on the architecture that it is for.

    Other kernels than the one called a model gets by the operator that a pass routes to them, not by this rule.
    """

    ops = tuple(record.overload for record in records())

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses what the kernel's record does, and code for another architecture."""
        record = find(view.op._schema.name)
        if view.config.is_host and not record.on_host:
            return Refusal(f"{record.op} has no formula that compiles for the host", {"op": record.op})
        reason = record.refuse(record.problem_of(view.arguments))
        if reason is not None:
            return Refusal(f"{record.op} does not serve the call: {reason}", {"op": record.op})
        arch, target = record.arch_of(view.arguments), view.config.target
        if arch is None or isinstance(target, str) or target.arch == arch:
            return None
        return Refusal(f"this call of {record.op} is compiled for {arch} alone, got {target.arch}", {"arch": arch})

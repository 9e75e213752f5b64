"""What a partition came to: what was taken, what was left, and why."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping

from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.options import BackendConfig
from etcuda.partitioner.claims import Claims
from etcuda.partitioner.kept_whole import decide
from etcuda.partitioner.node_view import Refusal
from etcuda.passes.graph.edge_ops import underlying


@dataclasses.dataclass(frozen=True)
class RefusedNode:
    """One call that is not delegated.

    Attributes:
        node: its name in the graph.
        op: its operator.
        reason: a sentence with the actual values.
        values: those values by name.
        kept_buffer: the node is a mutated buffer that stays in the program, not a call.
    """

    node: str
    op: str
    reason: str
    values: dict[str, object]
    kept_buffer: bool = False


@dataclasses.dataclass(frozen=True)
class PartitionReport:
    """What one program's partition came to.

    Attributes:
        delegated: number of calls in partitions.
        total: number of calls, those inside control flow that is claimed whole not counted.
        partitions: number of nodes of each partition, in execution order.
        refusals: every call that is left, and every mutated buffer that no partition can own.
        decomposed: calls that would have been taken whole, were it not for the reason; their parts count above.
    """

    delegated: int
    total: int
    partitions: tuple[int, ...]
    refusals: tuple[RefusedNode, ...]
    decomposed: tuple[RefusedNode, ...] = ()

    def summary(self) -> str:
        """One line."""
        return f"{self.delegated} of {self.total} nodes delegated in {len(self.partitions)} partitions"

    def __str__(self) -> str:
        """The summary, then a table of what was left or decomposed, calls of one operator and reason in one row."""
        if not self.refusals and not self.decomposed:
            return self.summary()
        from rich.console import Console
        from rich.table import Table

        rows: dict[tuple[str, str], list[str]] = {}
        for each in self.refusals:
            rows.setdefault((each.op, each.reason), []).append(each.node)
        for each in self.decomposed:
            rows.setdefault((each.op, f"decomposed: {each.reason}"), []).append(each.node)
        table = Table("operator", "nodes", "reason")
        for (op, reason), nodes in rows.items():
            shown = nodes[0] if len(nodes) == 1 else f"{nodes[0]} and {len(nodes) - 1} more"
            table.add_row(op, shown, reason)
        stream = io.StringIO()
        Console(file=stream, width=160, highlight=False).print(table, markup=False)
        return f"{self.summary()}\n{stream.getvalue()}"


def make_report(claims: Claims, kept_buffers: Mapping[str, str]) -> PartitionReport:
    """Builds the report from what ``claim`` and ``tag_mutated_buffers`` returned."""
    refusals = [_refused(node, claims) for node in claims.refusals]
    refusals += [RefusedNode(name, "buffer", why, {}, kept_buffer=True) for name, why in kept_buffers.items()]
    sizes = tuple(len(group) for group in claims.partitions)
    return PartitionReport(sum(sizes), sum(sizes) + len(claims.refusals), sizes, tuple(refusals))


def decomposed_calls(program: ExportedProgram, config: BackendConfig) -> tuple[RefusedNode, ...]:
    """Calls of a program from ``torch.export.export`` that could be taken whole but for a reason."""
    decisions = decide(program, config)
    return tuple(_describe(node, refusal) for node, refusal in decisions.items() if refusal is not None)


def _refused(node: Node, claims: Claims) -> RefusedNode:
    return _describe(node, claims.refusals[node])


def _describe(node: Node, refusal: Refusal) -> RefusedNode:
    op = underlying(node.target)
    name = str(op) if op is not None else getattr(node.target, "__name__", str(node.target))
    return RefusedNode(node.name, name, refusal.reason, dict(refusal.values))

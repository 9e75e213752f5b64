"""Copies that only change sizes and strides become views."""

from __future__ import annotations

import operator

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import Graph, Node

from etcuda.options import BackendConfig
from etcuda.passes.base import graph_modules, graph_pass
from etcuda.passes.graph.calls import arguments, returns_alias
from etcuda.passes.graph.edge_ops import VIEW_OF_COPY
from etcuda.passes.graph.meta import refresh_meta


@graph_pass(requires=("lower_edge_ops", "record_output_layout"))
def view_copy_to_view(program: ExportedProgram, config: BackendConfig) -> int:
    """Replaces each view copy by the view, where no operator writes to a tensor that would share its memory.

    Before: ``aten.permute_copy(x, [1, 0])``. After: ``aten.permute(x, [1, 0])``.
    ``view_copy`` becomes ``reshape``, since its input may by then be a view that no single stride can express.
    Metadata of everything behind a rewritten node is recomputed, because strides change.
    """
    changed = 0
    for module in graph_modules(program):
        here = _rewrite(module.graph)
        if here:
            refresh_meta(module.graph)
        changed += here
    return changed


def _rewrite(graph: Graph) -> int:
    written = _written_groups(graph)
    changed = 0
    for node in graph.nodes:
        if node.op == "call_function" and node.target in VIEW_OF_COPY and node not in written:
            node.target = VIEW_OF_COPY[node.target]
            changed += 1
    return changed


def _written_groups(graph: Graph) -> set[Node]:
    """Nodes that would share memory with a node that some operator writes to."""
    mutated = {node for call in graph.nodes for node in _written_inputs(call)}
    if not mutated:
        return set()
    root: dict[Node, Node] = {}
    for node in graph.nodes:
        base = node.args[0] if node.op == "call_function" and node.args else None
        is_view = node.target is operator.getitem or returns_alias(node.target)
        shares = isinstance(base, Node) and (node.target in VIEW_OF_COPY or is_view)
        root[node] = root[base] if shares and isinstance(base, Node) else node
    roots = {root[node] for node in mutated}
    return {node for node in graph.nodes if root[node] in roots}


def _written_inputs(node: Node) -> list[Node]:
    op = node.target
    if node.op != "call_function" or not isinstance(op, torch._ops.OpOverload) or not op._schema.is_mutable:
        return []
    given = arguments(node)
    written = [a.name for a in op._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return [given[name] for name in written if isinstance(given[name], Node)]

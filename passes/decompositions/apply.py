"""Calls of operators that Inductor has no generated code for become formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.options import BackendConfig
from etcuda.passes.base import NodeError, graph_modules, graph_pass
from etcuda.passes.decompositions.record import Decomposition
from etcuda.passes.decompositions.table import DECOMPOSITION_OF
from etcuda.passes.graph.calls import arguments
from etcuda.passes.graph.dead_code import erase_dead
from etcuda.passes.graph.inline_function import inline_function
from etcuda.passes.graph.meta import refresh_meta


@graph_pass(requires=("lower_edge_ops", "bind_symbolic_inputs", "view_copy_to_view"))
def apply_decompositions(program: ExportedProgram, config: BackendConfig) -> int:
    """Replaces calls by the formulas of the table, in control flow too.

    Before: ``avg_pool2d(x, [7, 7], [1, 1])``.
    After: sums along two dimensions of ``unfold(x, ...)``, and a division.
    """
    changed = 0
    for module in graph_modules(program):
        chosen = [node for node in module.graph.nodes if node.op == "call_function" and _is_chosen(node)]
        for node in chosen:
            record = DECOMPOSITION_OF[node.target]
            inputs = node.all_input_nodes
            inline_function(node, _Formula(record, list(arguments(node).values()), inputs), *inputs)
        if chosen:
            erase_dead(module.graph)
            refresh_meta(module.graph)
        changed += len(chosen)
    return changed


def _is_chosen(node: Node) -> bool:
    if node.target not in DECOMPOSITION_OF:
        return False
    record = DECOMPOSITION_OF[node.target]
    given = {
        name: torch.fx.map_arg(value, lambda source: source.meta["val"]) for name, value in arguments(node).items()
    }
    if not record.applies(given):
        return False
    reason = record.refuse(given)
    if reason is not None:
        raise NodeError(node, f"{reason}; the partitioner should have left it")
    return True


class _Formula:
    """A formula as a function of the call's inputs."""

    def __init__(self, record: Decomposition, given: list[Any], inputs: list[Node]) -> None:
        self._record = record
        self._given = given
        self._inputs = inputs

    def __call__(self, *values: Tensor) -> Any:
        found = dict(zip(self._inputs, values, strict=True))
        return self._record.formula(*torch.fx.map_arg(self._given, found.__getitem__))

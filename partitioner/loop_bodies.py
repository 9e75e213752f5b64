"""Bodies of loops are decomposed, also where nothing around them is."""

from __future__ import annotations

from typing import Any

from torch.export import default_decompositions
from torch.export.exported_program import ExportedProgram
from torch.fx import Graph

from etcuda.options import BackendConfig
from etcuda.partitioner.kept_whole import kept_operators
from etcuda.passes.base import graph_modules


def decompose_loops(program: ExportedProgram, config: BackendConfig) -> ExportedProgram:
    """Decomposes a program whose only calls to decompose stand in branches and bodies of control flow.

    ExecuTorch decomposes a program only if it finds a call to decompose, and does not look into ``while_loop`` and
    ``scan``; its check then refuses what stands there.

    Args:
        program: from ``torch.export.export``; not changed.
        config: target and options.
    """
    # Of class CustomDecompTable, a dictionary whose methods have no types.
    table: dict[Any, Any] = dict(default_decompositions())
    for op in kept_operators(program, config):
        table.pop(op, None)

    def occurs(graph: Graph) -> bool:
        return any(node.op == "call_function" and node.target in table for node in graph.nodes)

    outer, *inner = graph_modules(program)
    if occurs(outer.graph) or not any(occurs(module.graph) for module in inner):
        return program
    decomposed: ExportedProgram = program.run_decompositions(table)
    return decomposed

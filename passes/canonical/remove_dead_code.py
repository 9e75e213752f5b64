"""What no output depends on is dropped."""

from __future__ import annotations

from torch.export.exported_program import ExportedProgram

from etcuda.options import BackendConfig
from etcuda.passes.base import graph_modules, graph_pass
from etcuda.passes.graph.dead_code import erase_dead


@graph_pass(requires=("lower_edge_ops",))
def remove_dead_code(program: ExportedProgram, config: BackendConfig) -> int:
    """Erases calls without users, in control flow too. Placeholders stay: they are the program's signature."""
    changed = 0
    for module in graph_modules(program):
        changed += erase_dead(module.graph)
    return changed

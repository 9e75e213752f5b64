"""What no output depends on is dropped."""

from __future__ import annotations

from torch.export.exported_program import ExportedProgram

from etcuda.options import BackendConfig
from etcuda.passes.base import graph_modules, graph_pass


@graph_pass(requires=("lower_edge_ops",))
def remove_dead_code(program: ExportedProgram, config: BackendConfig) -> int:
    """Erases calls without users, in control flow too. Placeholders stay: they are the program's signature."""
    changed = 0
    for module in graph_modules(program):
        before = len(module.graph.nodes)
        module.graph.eliminate_dead_code()
        changed += before - len(module.graph.nodes)
    return changed

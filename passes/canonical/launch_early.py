"""Kernels that a model calls itself, launched while the one in front runs where the GPU can."""

from __future__ import annotations

from torch.export.exported_program import ExportedProgram

import etcuda.kernels  # noqa: F401  registers the kernels
from etcuda.kernels.common.device import supports_pdl
from etcuda.kernels.common.registry import records
from etcuda.options import BackendConfig
from etcuda.passes.base import graph_modules, graph_pass
from etcuda.passes.graph.calls import arguments
from etcuda.target import CudaTarget


@graph_pass(requires=("lower_edge_ops",))
def launch_early(program: ExportedProgram, config: BackendConfig) -> int:
    """Sets the last argument of operators whose kernels wait for all that they read.

    Before: ``gated_delta_layer(..., positions, 0)``.
    After: ``gated_delta_layer(..., positions, 1)``.
    """
    if not isinstance(config.target, CudaTarget) or not supports_pdl(config.target):
        return 0
    early = {record.overload for record in records() if record.launched_early}
    changed = 0
    for module in graph_modules(program):
        for node in module.graph.nodes:
            if node.op == "call_function" and node.target in early and arguments(node)["pdl"] == 0:
                node.args = (*node.args[: len(node.target._schema.arguments) - 1], 1)
                changed += 1
    return changed

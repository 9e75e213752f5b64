"""Kernels that a model calls itself, on the host."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

import etcuda.kernels  # noqa: F401  registers the kernels
from etcuda.kernels.common.registry import KernelRecord, records
from etcuda.options import BackendConfig
from etcuda.passes.base import graph_modules, graph_pass
from etcuda.passes.graph.calls import arguments
from etcuda.passes.graph.dead_code import erase_dead
from etcuda.passes.graph.inline_function import inline_function
from etcuda.passes.graph.meta import refresh_meta


@graph_pass(requires=("lower_edge_ops", "bind_symbolic_inputs", "view_copy_to_view"))
def inline_kernels(program: ExportedProgram, config: BackendConfig) -> int:
    """Replaces every call of a registered kernel by its formula, on the host alone.

    Before: ``q, scale, sum = quantize_activation(x)``.
    After: ``amax(abs(view(x, [-1, K / 32, 32])), -1)`` and so on, which Inductor compiles for the CPU.
    """
    if not config.is_host:
        return 0
    by_op = {record.overload: record for record in records()}
    changed = 0
    for module in graph_modules(program):
        calls = [node for node in module.graph.nodes if node.op == "call_function" and node.target in by_op]
        for node in calls:
            _inline(node, by_op[node.target])
        if calls:
            erase_dead(module.graph)
            refresh_meta(module.graph)
        changed += len(calls)
    return changed


def _inline(node: Node, record: KernelRecord) -> None:
    given = arguments(node)
    tensors = {name: value for name, value in given.items() if isinstance(value, Node)}
    inline_function(node, functools.partial(_compute, record, given, tuple(tensors)), *tensors.values())


def _compute(record: KernelRecord, given: dict[str, Any], names: tuple[str, ...], *tensors: Tensor) -> Any:
    return record.compute(given | dict(zip(names, tensors, strict=True)))

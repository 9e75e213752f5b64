"""A gated activation that is reordered for tensor cores is reordered by the kernel that computes it."""

from __future__ import annotations

import logging

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import GraphModule, Node

from etcuda.options import BackendConfig
from etcuda.passes.base import graph_modules, graph_pass
from etcuda.passes.graph.calls import arguments, insert_call
from etcuda.passes.graph.dead_code import erase_dead
from etcuda.passes.graph.meta import refresh_meta
from etcuda.passes.graph.results import read_sizes_of, take_over
from etcuda.passes.linear.fuse_quantize import where_from
from etcuda.passes.recognize.gate import Gate, recognize_gate
from etcuda.passes.recognize.rows import other_readers, same_rows

log = logging.getLogger(__name__)

_ops = torch.ops.etcuda


@graph_pass(requires=("route_linear",))
def fuse_reorder(program: ExportedProgram, config: BackendConfig) -> int:
    """Fuses a gated activation that nothing else reads with its reordering for the kernel in CUDA C++.

    Before: ``reorder_activation(silu(y[..., :I]) * y[..., I:], 4, "exact", ...)``.
    After: ``gate_reorder(y, None, "silu", "exact", ...)``.
    In a branch the whole chain must lie in it; the log names what stays by itself, with the reason.
    """
    changed = 0
    for module in graph_modules(program):
        here = 0
        for node in list(module.graph.nodes):
            if node.op == "call_function" and node.target is _ops.reorder_activation.default:
                here += _fuse(program, module, node)
        if here:
            erase_dead(module.graph)
            refresh_meta(module.graph)
        changed += here
    return changed


def _fuse(program: ExportedProgram, module: GraphModule, call: Node) -> int:
    """Replaces a call that reorders a gated activation; returns 1, or 0 if it stays."""
    given = arguments(call)
    y = same_rows(given["x"])
    gate = "" if y.op == "placeholder" else recognize_gate(y)
    reason = _refuse(program, module, call, y, gate)
    if reason is not None:
        log.info("%s stays by itself: %s", call.name, reason)
        return 0
    assert isinstance(gate, Gate)
    args = (gate.gate, gate.up, gate.activation, given["activation_dtype"], given["block_m"], given["pdl"])
    fused = insert_call(call, _ops.gate_reorder.default, args)
    take_over(fused, 0, [call], y)
    read_sizes_of(y, gate.gate)
    log.info("%s: %s of %s and its reordering are one kernel", fused.name, gate.activation, gate.gate.name)
    return 1


def _refuse(program: ExportedProgram, module: GraphModule, call: Node, y: Node, gate: Gate | str) -> str | None:
    if y.op == "placeholder":
        return where_from(program, module, y)
    if not arguments(call)["tiled"]:
        return "the product behind it is not the kernel in CUDA C++"
    if isinstance(gate, str):
        return gate
    others = other_readers(y, [call])
    return f"{others[0].name} reads {y.name} too" if others else None

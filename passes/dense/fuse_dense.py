"""Unquantised weights that read one input become one weight, of which each product reads its rows."""

from __future__ import annotations

import logging

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.kernels.dense.choose.select import most_tokens
from etcuda.kernels.dense.problem import DenseProblem, refuse
from etcuda.options import BackendConfig
from etcuda.passes.base import graph_pass
from etcuda.passes.graph.calls import insert_call
from etcuda.passes.graph.meta import refresh_meta, tensor_of
from etcuda.passes.graph.program_constants import forget_unused, has_other_methods, target_of
from etcuda.passes.linear.call import ROWS_OF
from etcuda.passes.linear.join import join_rows
from etcuda.passes.recognize.dense import DenseCall, recognize_dense, recognize_gated_pair
from etcuda.target import CudaTarget
from etcuda.torch_private import bounds

log = logging.getLogger(__name__)

aten = torch.ops.aten

# Rows of each part of a joined weight or bias are a multiple, so that a part begins at a multiple of 16 bytes.
_ROWS = 8


@graph_pass(requires=("lower_edge_ops", "view_copy_to_view", "pack_torchao"))
def fuse_dense(program: ExportedProgram, config: BackendConfig) -> int:
    """Joins bf16 and fp16 weights of products that read one input.

    Before: ``q, k = mm(x, permute(wq)), mm(x, permute(wk))``.
    After: ``q, k = mm(x, permute(w[:n])), mm(x, permute(w[n:]))``, where w is ``wq | wk``.
    Nothing else changes here: ``route_dense`` makes one product of them where the number of tokens is small. A gate and
    its other factor are joined by themselves. Programs that never have few tokens are left as they are, unless another
    method may read the same weights.
    """
    target = config.target
    if not isinstance(target, CudaTarget):
        return 0
    calls: dict[Node, DenseCall] = {}
    for node in program.graph.nodes:
        call = recognize_dense(node)
        if call is None or not _may_be_routed(program, call, target):
            continue
        reason = _refuse(program, call)
        if reason is None:
            calls[node] = call
        else:
            log.info("%s stays apart: %s", node.name, reason)
    groups = _groups(program, calls)
    for group in groups:
        _join(program, group)
    if groups:
        refresh_meta(program.graph)
    return sum(map(len, groups))


def _may_be_routed(program: ExportedProgram, call: DenseCall, target: CudaTarget) -> bool:
    """Whether a program, this one or one that shares its weights, may compute the product by our kernel."""
    problem = DenseProblem(1, call.n, call.k)
    if refuse(problem) is not None:
        return False
    limit = most_tokens(problem, target)
    return limit > 0 and (has_other_methods(program) or bounds(call.num_tokens)[0] <= limit)


def _groups(program: ExportedProgram, calls: dict[Node, DenseCall]) -> list[list[DenseCall]]:
    """Products to join, gate and up first; groups of several."""
    found: list[list[DenseCall]] = []
    taken: set[Node] = set()
    for node in program.graph.nodes:
        pair = recognize_gated_pair(node, calls)
        if pair is not None and not taken & {pair.gate.node, pair.up.node}:
            found.append([pair.gate, pair.up])
            taken |= {pair.gate.node, pair.up.node}
    by_input: dict[object, list[DenseCall]] = {}
    for node, call in calls.items():
        if node not in taken:
            by_input.setdefault((call.source, tensor_of(call.weight).dtype, call.bias is None), []).append(call)
    return [group for group in (*found, *by_input.values()) if len(group) > 1]


def _refuse(program: ExportedProgram, call: DenseCall) -> str | None:
    """Why a weight stays apart, in words; ``None`` if it can be joined with others."""
    for node in (call.weight, call.bias):
        if node is None:
            continue
        if target_of(program, node) is None:
            return f"{node.name} is no constant"
        if len(node.users) > 1 or len(call.transposed.users) > 1:
            return f"{node.name} is used elsewhere too and would be stored twice"
    if call.n % _ROWS:
        return f"{call.weight.name} has {call.n} rows, and the next one would not begin at a multiple of 16 bytes"
    return None


def _join(program: ExportedProgram, calls: list[DenseCall]) -> None:
    weights = [call.weight for call in calls]
    biases = [call.bias for call in calls if call.bias is not None]
    weight = join_rows(program, weights)
    bias = join_rows(program, biases) if biases else None
    start = 0
    for call in calls:
        rows = _rows(call.transposed, weight, start, start + call.n)
        call.transposed.replace_input_with(call.weight, rows)
        if bias is not None and call.bias is not None:
            call.node.replace_input_with(call.bias, _rows(call.node, bias, start, start + call.n))
        start += call.n
    forget_unused(program, [*weights, *biases])
    log.info("%s: one weight with %d rows", " | ".join(call.node.name for call in calls), start)


def _rows(before: Node, whole: Node, start: int, end: int) -> Node:
    rows = insert_call(before, aten.slice.Tensor, (whole, 0, start, end))
    rows.meta[ROWS_OF] = whole.name
    return rows

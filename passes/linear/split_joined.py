"""Joined products that may go to tensor cores are taken apart again; each reads its rows of the joined weight."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.options import BackendConfig
from etcuda.passes.base import graph_pass
from etcuda.passes.graph.calls import arguments, insert_call
from etcuda.passes.graph.dead_code import erase_dead
from etcuda.passes.graph.meta import refresh_meta, tensor_of
from etcuda.passes.linear.call import ROWS_OF, LinearCall
from etcuda.passes.linear.choose import may_take_tensor_cores
from etcuda.passes.linear.join import linear_calls
from etcuda.target import CudaTarget

log = logging.getLogger(__name__)

aten = torch.ops.aten


@graph_pass(requires=("fuse_mlp", "fuse_qkv"))
def split_joined(program: ExportedProgram, config: BackendConfig) -> int:
    """Takes joined products apart again where tensor cores may compute them, and leaves their weights joined.

    Before: ``y = int4_linear(x, gate | up)``, ``mul(silu(y[..., :I]), y[..., I:])``.
    After: ``mul(silu(int4_linear(x, (gate | up)[:I])), int4_linear(x, (gate | up)[I:]))``.
    How tensor cores split the sums of a product depends on N, so that a joined product would have other bits than its
    parts. Rows of a weight are views: no weight is copied. A call that never has more tokens than integer dot products
    are taken for stays joined: their sums do not depend on N.
    """
    target = config.target
    if not isinstance(target, CudaTarget):
        return 0
    calls = [call for call in linear_calls(program) if len(call.joined) > 1 and may_take_tensor_cores(call, target)]
    inputs = [node for node in program.graph.nodes if node.op == "placeholder"]
    for call in calls:
        # Behind the inputs, where every call of one x finds them.
        _split(call.now(), inputs[-1].next)
    if calls:
        erase_dead(program.graph)
        refresh_meta(program.graph)
    return len(calls)


def _split(call: LinearCall, front: Node) -> None:
    ends = list(itertools.accumulate(call.joined))
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    operands = (*call.stored, call.bias)
    # All rows first: where the call is the first node, they would come behind the first of the parts.
    rows = [[None if whole is None else _rows(front, whole, *span) for whole in operands] for span in spans]
    target: Any = call.node.target
    results = {
        span: insert_call(call.node, target, (call.x, *stored, call.group_size, call.activation_dtype))
        for span, stored in zip(spans, rows, strict=True)
    }
    dim = tensor_of(call.node).dim() - 1
    for user in list(call.node.users):
        part = results.get(_slice_of(user, call.node, dim))
        if part is not None:
            user.replace_all_uses_with(part)
    if any(user.users or user.op == "output" for user in call.node.users):
        whole = insert_call(call.node, aten.cat.default, (list(results.values()), dim))
        call.node.replace_all_uses_with(whole)
    log.info("%s: the %d products that were joined are computed one by one", call.node.name, len(results))


def _rows(front: Node, whole: Node, start: int, end: int) -> Node:
    """Rows of a weight, marked so that they pass for one."""
    rows = insert_call(front, aten.slice.Tensor, (whole, 0, start, end))
    rows.meta[ROWS_OF] = whole.name
    return rows


def _slice_of(node: Node, whole: Node, dim: int) -> tuple[int, int]:
    """The columns of ``whole`` that a slice takes; (0, 0) if it is something else."""
    if node.target is not aten.slice.Tensor:
        return 0, 0
    given = arguments(node)
    if given["self"] is not whole or given["dim"] % (dim + 1) != dim or given["step"] != 1:
        return 0, 0
    return given["start"] or 0, min(given["end"], tensor_of(whole).shape[-1])

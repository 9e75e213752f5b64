"""Quantised products of one input become one, whose weight has the rows of all: what fuse_mlp and fuse_qkv share."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.passes.graph.calls import insert_call
from etcuda.passes.graph.meta import tensor_of
from etcuda.passes.graph.program_constants import forget_unused, insert_constant, made_of, target_of, value_of
from etcuda.passes.graph.recipes import Rows, stand_in
from etcuda.passes.linear.call import JOINED, LinearCall, read_linear

log = logging.getLogger(__name__)

aten = torch.ops.aten

# Bytes that one load of a kernel takes, at most.
ALIGNMENT = 16


def linear_calls(program: ExportedProgram) -> list[LinearCall]:
    """Quantised products outside control flow, in order."""
    found = (read_linear(node) for node in program.graph.nodes)
    return [call for call in found if call is not None]


def refuse_fusion(program: ExportedProgram, calls: list[LinearCall]) -> str | None:
    """Why products stay apart, in words; ``None`` if they can become one."""
    calls = [call.now() for call in calls]
    first = calls[0]
    for call in calls[1:]:
        if call.x is not first.x:
            return f"they read {first.x.name} and {call.x.name}"
        if call.format != first.format:
            return f"formats differ, {first.format} and {call.format}"
        if call.activation_dtype != first.activation_dtype:
            return f"activations differ, {first.activation_dtype!r} and {call.activation_dtype!r}"
        if (call.bias is None) != (first.bias is None):
            return "one has a bias and the other has not"
        if call.bias is not None and first.bias is not None:
            dtypes = (tensor_of(first.bias).dtype, tensor_of(call.bias).dtype)
            if dtypes[0] != dtypes[1]:
                return f"biases differ in dtype, {dtypes[0]} and {dtypes[1]}"
    seen: set[Node] = set()
    for call in calls:
        for node in call.operands:
            if target_of(program, node) is None:
                return f"{node.name} is no constant"
            if len(node.users) > 1 or node in seen:
                return f"{node.name} is used elsewhere too and would be stored twice"
            seen.add(node)
    return _refuse_alignment(calls)


def _refuse_alignment(calls: list[LinearCall]) -> str | None:
    """Why kernels could not read the rows of one weight out of the joined one; ``None`` if they can."""
    start = 0
    for call in calls:
        for node in call.operands:
            value = tensor_of(node)
            begin = start * value[0].numel() * value.itemsize
            if begin % ALIGNMENT:
                return (
                    f"{node.name} would begin {begin} bytes into the joined tensor, and kernels read from multiples of "
                    f"{ALIGNMENT}"
                )
        start += call.n
    return None


def fuse(program: ExportedProgram, calls: list[LinearCall]) -> None:
    """Replaces products that ``refuse_fusion`` does not refuse by one and slices of its result.

    The program then holds the joined weight and not those that it was joined from.
    """
    calls = [call.now() for call in calls]
    first = calls[0]
    joined = [
        None if tensors[0] is None else join_rows(program, [tensor for tensor in tensors if tensor is not None])
        for tensors in zip(*([*call.stored, call.bias] for call in calls), strict=True)
    ]
    target: Any = first.node.target
    whole = insert_call(first.node, target, (first.x, *joined, first.group_size, first.activation_dtype))
    whole.meta[JOINED] = tuple(n for call in calls for n in call.joined)
    start, unused = 0, list(dict.fromkeys(node for call in calls for node in call.operands))
    dim = tensor_of(whole).dim() - 1
    slices = []
    for call in calls:
        slices.append(insert_call(first.node, aten.slice.Tensor, (whole, dim, start, start + call.n)))
        start += call.n
    for call, part in zip(calls, slices, strict=True):
        call.node.replace_all_uses_with(part)
        program.graph.erase_node(call.node)
    forget_unused(program, unused)
    names = " | ".join(call.node.name for call in calls)
    log.info("%s: one product with %d rows, %s", names, start, dataclasses.asdict(first.format))


def join_rows(program: ExportedProgram, nodes: list[Node]) -> Node:
    """A new constant in front of the first of ``nodes``: their rows after one another, joined when they are stored."""
    targets = [target_of(program, node) for node in nodes]
    parts = [value_of(program, target) for target in targets if target is not None]
    value = made_of(parts, "rows", lambda: stand_in(Rows(tuple(parts))))
    return insert_constant(program, nodes[0], f"{targets[0]}_and_{len(targets) - 1}_more", value)

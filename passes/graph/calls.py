"""Calls that a rewrite inserts."""

from __future__ import annotations

import operator

import torch
from torch.fx import Node

from etcuda.passes.graph.meta import compute_meta


def insert_call(before: Node, target: torch._ops.OpOverload, args: tuple[object, ...], **kwargs: object) -> Node:
    """Inserts a call in front of ``before``, with the metadata of its result computed on fake tensors."""
    graph = before.graph
    with graph.inserting_before(before):
        node = graph.call_function(target, args, kwargs)  # type: ignore[arg-type]
    for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "debug_handle"):
        if key in before.meta:
            node.meta[key] = before.meta[key]
    compute_meta(node)
    return node


def result_of(call: Node, index: int) -> Node:
    """The node of one of several results of a call, right behind it."""
    for user in call.users:
        if user.target is operator.getitem and user.args[1] == index:
            return user
    with call.graph.inserting_after(call):
        part = call.graph.call_function(operator.getitem, (call, index))
    part.meta = {**call.meta}
    compute_meta(part)
    return part

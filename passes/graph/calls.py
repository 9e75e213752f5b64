"""Calls in a graph: their arguments by name, and new ones."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from etcuda.passes.graph.meta import compute_meta

aten = torch.ops.aten

# Operators that read sizes of a tensor and nothing else of it.
SIZE_OPS = frozenset({aten.sym_size.int, aten.sym_numel.default})
# Where a node comes from, for messages: a new call has the origin of the node in front of which it stands.
ORIGIN = ("stack_trace", "nn_module_stack", "source_fn_stack", "debug_handle")


def arguments(node: Node, op: torch._ops.OpOverload | None = None) -> dict[str, Any]:
    """Every argument of a call of an operator by name, defaults filled in.

    Args:
        node: the call.
        op: the operator whose schema says the names; the node's own target if it is left out.
    """
    if op is None:
        assert isinstance(node.target, torch._ops.OpOverload)
        op = node.target
    found: dict[str, Any] = {}
    for index, argument in enumerate(op._schema.arguments):
        default = node.kwargs.get(argument.name, argument.default_value)
        found[argument.name] = node.args[index] if index < len(node.args) else default
    return found


def insert_call(before: Node, target: Callable[..., Any], args: tuple[Any, ...], **kwargs: Any) -> Node:
    """Inserts a call in front of ``before``, with metadata computed from that of its inputs.

    Args:
        before: a node of the graph.
        target: an operator, or a Python function of numbers.
        args: nodes and constants.
        kwargs: likewise.
    """
    graph = before.graph
    with graph.inserting_before(before):
        node = graph.call_function(target, args, kwargs)
    for key in ORIGIN:
        if key in before.meta:
            node.meta[key] = before.meta[key]
    compute_meta(node)
    return node


def insert_results(before: Node, target: Callable[..., Any], args: tuple[Any, ...]) -> list[Node]:
    """Inserts a call of an operator with several results in front of ``before``; returns a node for each result."""
    call = insert_call(before, target, args)
    return [insert_call(before, operator.getitem, (call, index)) for index in range(len(call.meta["val"]))]


def result_of(call: Node, index: int) -> Node:
    """The node of one of several results of a call; a new one stands right behind the call."""
    for user in call.users:
        if user.target is operator.getitem and user.args[1] == index:
            return user
    with call.graph.inserting_after(call):
        result = call.graph.call_function(operator.getitem, (call, index))
    result.meta = {**call.meta}
    compute_meta(result)
    return result


def erase_unused(node: object, last: Node) -> None:
    """Erases calls that nothing reads, from ``node`` back along their first inputs, up to ``last``, which stays."""
    while isinstance(node, Node) and node is not last and not node.users:
        source = node.args[0]
        node.graph.erase_node(node)
        node = source


def returns_alias(op: object) -> bool:
    """Whether an operator declares that a result of it shares memory with an input."""
    return isinstance(op, torch._ops.OpOverload) and any(each.alias_info is not None for each in op._schema.returns)

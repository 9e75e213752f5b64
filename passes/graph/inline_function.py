"""Replaces a call by the operators that a Python function of its tensors calls."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx

from etcuda.passes.base import NodeError
from etcuda.passes.graph.meta import compute_meta
from etcuda.torch_private import fake_mode_of, on_fake_tensors

Rewrite = Callable[..., Any]


def inline_function(node: Node, function: Rewrite, *inputs: Node) -> list[Node]:
    """Traces ``function`` on fake tensors and puts its operators in the place of ``node``.

    Sizes that are symbolic stay so: the function may compute with ``x.shape``.

    Args:
        node: the call to replace, erased afterwards.
        function: takes one value for each of ``inputs`` and returns one tensor of the shape and dtype of ``node``, or,
            where the call has several results, a tuple of so many.
        inputs: of ``node``: tensors and symbolic numbers.

    Returns:
        The new nodes, in order.

    Raises:
        NodeError: the function's result has another shape or dtype.
    """
    values = [each.meta["val"] for each in inputs]
    with torch.no_grad(), on_fake_tensors(fake_mode_of(values)):
        traced = make_fx(function)(*values)
    made: dict[Node, Any] = {}
    nodes = []
    results: Any = None
    placeholders = iter(inputs)
    with node.graph.inserting_before(node):
        for inner in traced.graph.nodes:
            if inner.op == "placeholder":
                made[inner] = next(placeholders)
            elif inner.op == "output":
                results = torch.fx.map_arg(inner.args[0], made.__getitem__)
            else:
                made[inner] = node.graph.node_copy(inner, made.__getitem__)
                made[inner].meta = {**node.meta, "val": inner.meta["val"]}
                nodes.append(made[inner])
    if isinstance(node.meta["val"], Tensor):
        _replace(node, results, node.meta["val"])
        return nodes
    for user in list(node.users):
        assert user.target is operator.getitem
        index: Any = user.args[1]
        _replace(user, results[index], node.meta["val"][index])
    node.graph.erase_node(node)
    return nodes


def _replace(node: Node, result: Node, expected: Tensor) -> None:
    got = result.meta["val"]
    if tuple(got.shape) != tuple(expected.shape) or got.dtype != expected.dtype:
        raise NodeError(
            node,
            f"expected a rewrite to {tuple(expected.shape)} {expected.dtype}, got {tuple(got.shape)} {got.dtype}",
        )
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)


def rewrite_calls(graph: Graph, choose: Callable[[Node], tuple[Rewrite, tuple[Node, ...]] | None]) -> int:
    """Walks a graph once, in order, inlining where ``choose`` gives a function and its tensors.

    Metadata is recomputed on the way, so that ``choose`` and the functions see the strides of what is already
    rewritten. A function may emit calls that ``choose`` rewrites in turn.

    Returns:
        The number of calls rewritten.
    """
    changed = 0
    pending = list(reversed(graph.nodes))
    while pending:
        node = pending.pop()
        if node.op != "call_function":
            continue
        if changed and not isinstance(node.target, torch._ops.HigherOrderOperator):
            compute_meta(node)
        chosen = choose(node)
        if chosen is not None:
            function, tensors = chosen
            pending += reversed(inline_function(node, function, *tensors))
            changed += 1
    return changed

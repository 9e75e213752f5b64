"""Replaces a call by the operators that a Python function of its tensors calls."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx

from etcuda.passes.base import NodeError
from etcuda.passes.graph.calls import ORIGIN
from etcuda.passes.graph.meta import compute_meta
from etcuda.torch_private import fake_mode_of, on_fake_tensors

Rewrite = Callable[..., Any]


def inline_function(node: Node, function: Rewrite, *inputs: Node) -> list[Node]:
    """Traces ``function`` on fake tensors and puts its operators in the place of ``node``.

    Sizes that are symbolic stay so: the function may compute with ``x.shape``.

    Args:
        node: the call to replace, erased afterwards.
        function: takes one value for each of ``inputs`` and returns one tensor of the shape and dtype of ``node``, or,
            where the call has several results, a tuple of those up to the last that is used.
        inputs: of ``node``: tensors and symbolic numbers.

    Returns:
        The new nodes, in order.

    Raises:
        NodeError: the function's result has another shape or dtype.
    """
    nodes: list[Node] = []
    results = trace_before(node, function, inputs, made=nodes)
    for each in nodes:
        each.meta = {**node.meta, "val": each.meta["val"]}
    if isinstance(node.meta["val"], Tensor):
        _replace(node, results, node.meta["val"])
        return nodes
    for user in list(node.users):
        assert user.target is operator.getitem
        index: Any = user.args[1]
        if not user.users:
            node.graph.erase_node(user)
            continue
        _replace(user, results[index], node.meta["val"][index])
    node.graph.erase_node(node)
    return nodes


def trace_before(
    before: Node,
    function: Rewrite,
    inputs: Sequence[Node],
    constant: Callable[[Tensor], Node] | None = None,
    made: list[Node] | None = None,
) -> Any:
    """Traces ``function`` on fake tensors and puts its operators in front of a node.

    Args:
        before: a node of the graph, whose origin the new ones have.
        function: takes one value for each of ``inputs``.
        inputs: nodes that yield tensors and symbolic numbers.
        constant: gives the node of a tensor that is no input.
        made: gets the new nodes, in order.

    Returns:
        What the function returns, with nodes in the place of tensors.
    """
    values = [each.meta["val"] for each in inputs]
    mode = fake_mode_of(values) or fake_mode_of([node.meta.get("val") for node in before.graph.nodes])
    with torch.no_grad(), on_fake_tensors(mode):
        traced = make_fx(function)(*values)
    found: dict[Node, Any] = {}
    placeholders = iter(inputs)
    origin = {key: before.meta[key] for key in ORIGIN if key in before.meta}
    with before.graph.inserting_before(before):
        for inner in traced.graph.nodes:
            if inner.op == "placeholder":
                found[inner] = next(placeholders)
            elif inner.op == "output":
                return torch.fx.map_arg(inner.args[0], found.__getitem__)
            elif inner.op == "get_attr" and constant is not None:
                found[inner] = constant(getattr(traced, inner.target))
            else:
                found[inner] = before.graph.node_copy(inner, found.__getitem__)
                found[inner].meta = {**origin, "val": inner.meta["val"]}
                if made is not None:
                    made.append(found[inner])
    raise AssertionError("a traced graph has an output")


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

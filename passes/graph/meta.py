"""Metadata of nodes: the fake values that rewrites keep up to date."""

from __future__ import annotations

import contextlib

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch.fx import Graph, Node

from etcuda.passes.base import NodeError


def refresh_meta(graph: Graph) -> None:
    """Recomputes the fake value of every operator call, in order. Control flow keeps the metadata it has."""
    for node in graph.nodes:
        if node.op == "call_function" and not isinstance(node.target, torch._ops.HigherOrderOperator):
            compute_meta(node)


def fake(value: object) -> object:
    """What a node argument stands for: the node's fake tensor or symbolic integer, anything else unchanged."""
    return value.meta.get("val") if isinstance(value, Node) else value


def tensor_of(node: Node) -> torch.Tensor:
    """The fake tensor of a node that yields one tensor.

    Raises:
        NodeError: the node yields something else.
    """
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        raise NodeError(node, f"expected a node that yields one tensor, got {type(value).__name__}")
    return value


def compute_meta(node: Node) -> None:
    """Recomputes ``meta['val']`` of a call from the metadata of its inputs."""
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    mode = detect_fake_mode([n.meta["val"] for n in node.all_input_nodes]) or _graph_mode(node)
    if not callable(node.target):
        raise NodeError(node, f"expected a callable target, got {node.target!r}")
    # Without the Python dispatcher, operators implemented in C++ fix symbolic sizes to their hints.
    with mode or contextlib.nullcontext(), enable_python_dispatcher():
        node.meta["val"] = node.target(*args, **kwargs)


def _graph_mode(node: Node) -> torch._subclasses.FakeTensorMode | None:
    """The fake mode of the graph that a node without tensor inputs lies in."""
    for other in node.graph.nodes:
        value = other.meta.get("val")
        if isinstance(value, torch._subclasses.FakeTensor):
            return value.fake_mode
    return None

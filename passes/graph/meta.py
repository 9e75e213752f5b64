"""The metadata of nodes, ``meta["val"]``: fake tensors and symbolic numbers, which rewrites keep up to date."""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from etcuda.passes.base import NodeError
from etcuda.torch_private import fake_mode_of, is_fake, on_fake_tensors


def refresh_meta(graph: Graph) -> None:
    """Recomputes the metadata of every operator call, in order. Control flow keeps the metadata it has."""
    for node in graph.nodes:
        if node.op == "call_function" and not isinstance(node.target, torch._ops.HigherOrderOperator):
            compute_meta(node)


def compute_meta(node: Node) -> None:
    """Recomputes ``meta["val"]`` of a call from the metadata of its inputs.

    Raises:
        NodeError: the node calls nothing.
    """
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    mode = fake_mode_of([n.meta["val"] for n in node.all_input_nodes]) or mode_of_graph(node.graph)
    if not callable(node.target):
        raise NodeError(node, f"expected a callable target, got {node.target!r}")
    with on_fake_tensors(mode):
        node.meta["val"] = node.target(*args, **kwargs)


def tensor_of(node: Node) -> torch.Tensor:
    """The fake tensor of a node that yields one tensor.

    Raises:
        NodeError: the node yields something else.
    """
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        raise NodeError(node, f"expected a node that yields one tensor, got {type(value).__name__}")
    return value


def mode_of_graph(graph: Graph) -> object | None:
    """The fake mode of the first fake tensor in a graph, for a node without tensors among its inputs."""
    first = next((node.meta["val"] for node in graph.nodes if is_fake(node.meta.get("val"))), None)
    return None if first is None else fake_mode_of([first])

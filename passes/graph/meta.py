"""The metadata of nodes, ``meta["val"]``: fake tensors and symbolic numbers, which rewrites keep up to date."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.fx import Graph, Node

from etcuda.passes.base import NodeError
from etcuda.torch_private import expression, fake_mode_of, is_fake, on_fake_tensors, storage_key

_COMPUTED = "etcuda_computed"


@dataclasses.dataclass(frozen=True)
class _Computed:
    """A value, and all that it was computed from. Arguments are replaced and not changed, and so are values."""

    target: Any
    args: Any
    kwargs: Any
    inputs: tuple[Any, ...]
    value: Any

    @property
    def is_apart(self) -> bool:
        """Whether the value shares memory with no input, which the metadata of a view says."""
        return _memory(self.value).isdisjoint(_memory(self.inputs))

    def holds(self, node: Node) -> bool:
        """Whether the value is the node's, and computing it again would give the same."""
        return (
            self.value is node.meta.get("val")
            and self.target is node.target
            and self.args is node.args
            and self.kwargs is node.kwargs
            and all(
                value is source.meta["val"] for value, source in zip(self.inputs, node.all_input_nodes, strict=True)
            )
        )


def refresh_meta(graph: Graph) -> None:
    """Brings the metadata of operator calls up to date, in order. Control flow keeps the metadata it has.

    What ``compute_meta`` computed is computed again only where the call or the value of an input is another one; a
    value that is as before stays, so that its readers need no new ones.
    """
    for node in graph.nodes:
        if node.op != "call_function" or isinstance(node.target, torch._ops.HigherOrderOperator):
            continue
        before: _Computed | None = node.meta.get(_COMPUTED)
        if before is not None and before.holds(node):
            continue
        known = before is not None and before.value is node.meta.get("val")
        after = compute_meta(node)
        if before is not None and known and _alike(before.value, after.value) and before.is_apart and after.is_apart:
            _record(node, before.value)


def forget_computed(graph: Graph) -> None:
    """Forgets what metadata was computed from, which keeps earlier graphs alive."""
    for node in graph.nodes:
        node.meta.pop(_COMPUTED, None)


def compute_meta(node: Node) -> _Computed:
    """Recomputes ``meta["val"]`` of a call from the metadata of its inputs.

    Raises:
        NodeError: the node calls nothing.
    """
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    mode = fake_mode_of([n.meta["val"] for n in node.all_input_nodes]) or mode_of_graph(node.graph)
    if not callable(node.target):
        raise NodeError(node, f"expected a callable target, got {node.target!r}")
    with on_fake_tensors(mode):
        value = node.target(*args, **kwargs)
    return _record(node, value)


def _record(node: Node, value: Any) -> _Computed:
    node.meta["val"] = value
    inputs = tuple(source.meta["val"] for source in node.all_input_nodes)
    found = _Computed(node.target, node.args, node.kwargs, inputs, value)
    node.meta[_COMPUTED] = found
    return found


def _memory(values: Any) -> set[int]:
    """Of the tensors among values, and in lists of them."""
    if isinstance(values, list | tuple):
        return set().union(*map(_memory, values))
    return {storage_key(values)} if isinstance(values, torch.Tensor) else set()


def _alike(one: Any, other: Any) -> bool:
    """Whether two values of a call are the same to whatever reads metadata."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, torch.Tensor):
        return _describe(one) == _describe(other)
    found = expression(one)
    return found is not None and bool(found == expression(other))


def _describe(tensor: torch.Tensor) -> list[Any]:
    numbers = (*tensor.shape, *tensor.stride(), tensor.storage_offset())
    # An expression, for comparing sizes as numbers would make a guard.
    return [tensor.dim(), tensor.dtype, tensor.device, tensor.requires_grad, *map(expression, numbers)]


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

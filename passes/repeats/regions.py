"""Parts of a graph that compute the same from other tensors.

A region is a run of calls. Two regions have one structure only if every call, every constant argument, every shape,
stride and dtype, every branch inside of them and every write to state is the same, and the same calls read the same
inputs. Nothing is changed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from etcuda.passes.graph.symbols import free_symbols, size_symbols
from etcuda.torch_private import expression


@dataclasses.dataclass(frozen=True)
class Region:
    """A run of calls, what it reads and what state it writes.

    Attributes:
        nodes: the calls whose results are tensors, in order.
        inputs: the tensors from outside, in the order in which they are first read.
        writes: for each state written to, its position in ``inputs`` and that of its new value in ``nodes``.
        structure: equal for two regions that compute the same from their inputs.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]
    writes: tuple[tuple[int, int], ...]
    structure: Hashable


def is_number(node: Node) -> bool:
    """Whether a node yields a size, or what is computed from sizes: each region computes those for itself."""
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymBool | torch.SymFloat | bool | int | float)


def describe_region(
    nodes: Sequence[Node], writes: Mapping[Node, Sequence[Node]], carriers: Mapping[Any, tuple[Node, int]]
) -> Region | None:
    """The region of a run of calls.

    Args:
        nodes: calls with tensor results, in the order of the graph.
        writes: for each new value of state, the placeholders of the states that it is written to.
        carriers: for each symbol, an input of the program that has it as a size.

    Returns:
        ``None`` if a size that it needs is no size of its inputs nor of the program's.
    """
    place = {node: index for index, node in enumerate(nodes)}
    inputs: dict[Node, int] = {}
    symbols: set[Any] = set()

    def argument(value: object) -> Hashable:
        if isinstance(value, Node):
            if value.op == "get_attr":
                return _attribute(value)
            if is_number(value):
                symbols.update(free_symbols(value.meta["val"]))
                return ("number", signature(value.meta["val"]))
            if value in place:
                return ("call", place[value])
            return ("input", inputs.setdefault(value, len(inputs)))
        return _literal(value, argument)

    calls = [(node.target, argument(node.args), argument(node.kwargs), signature(node.meta["val"])) for node in nodes]
    written = [(inputs.setdefault(state, len(inputs)), place[node]) for node in nodes for state in writes.get(node, ())]
    known = size_symbols(inputs)
    for symbol in sorted(symbols - known.keys(), key=str):
        if symbol not in carriers:
            return None
        inputs.setdefault(carriers[symbol][0], len(inputs))
    values = [signature(node.meta["val"]) for node in inputs]
    structure = (tuple(calls), tuple(values), tuple(written))
    return Region(tuple(nodes), tuple(inputs), tuple(written), structure)


def token(node: Node) -> Hashable:
    """What a call is, without which tensors it reads."""

    def argument(value: object) -> Hashable:
        if isinstance(value, Node):
            return _attribute(value) if value.op == "get_attr" else signature(value.meta["val"])
        return _literal(value, argument)

    return (node.target, argument(node.args), argument(node.kwargs), signature(node.meta["val"]))


def signature(value: object) -> Hashable:
    """Shape, strides, dtype and device of a tensor; the expression of a number; of several values each."""
    if isinstance(value, torch.Tensor):
        sizes, strides = (tuple(map(_size, each)) for each in (value.shape, value.stride()))
        return ("tensor", sizes, strides, value.dtype, str(value.device))
    if isinstance(value, tuple | list):
        return tuple(signature(each) for each in value)
    number = expression(value)
    return ("value", type(value).__name__, repr(value) if number is None else str(number))


def _size(size: int | torch.SymInt) -> Hashable:
    """A size or a stride; equal for a number and for a symbolic one of this value."""
    if type(size) is int:
        return size
    value: Any = expression(size)
    return int(value) if getattr(value, "is_Integer", False) else _text(value)


@functools.lru_cache(4096)
def _text(value: Any) -> str:
    # Printing takes longer than all else here.
    return str(value)


def graph_structure(module: GraphModule) -> Hashable:
    """Equal for two branches or loop bodies that compute the same."""
    place = {node: index for index, node in enumerate(module.graph.nodes)}

    def argument(value: object) -> Hashable:
        if isinstance(value, Node):
            return _attribute(value) if value.op == "get_attr" else ("call", place[value])
        return _literal(value, argument)

    # Names of placeholders and submodules are of no effect.
    return tuple(
        (
            node.op,
            node.target if node.op == "call_function" else None,
            None if node.op in ("placeholder", "get_attr") else argument(node.args),
            argument(node.kwargs),
            signature(node.meta.get("val")),
        )
        for node in module.graph.nodes
        if node.op != "get_attr"
    )


def num_calls(node: Node) -> int:
    """The calls that compiling a call compiles: one, and those of the branches and bodies in it."""
    graphs = [_module_of(each) for each in node.all_input_nodes if each.op == "get_attr"]
    return 1 + sum(num_calls(each) for module in graphs for each in module.graph.nodes if each.op == "call_function")


def _literal(value: object, argument: Any) -> Hashable:
    if isinstance(value, tuple | list):
        return (type(value) is list, tuple(argument(each) for each in value))
    if isinstance(value, dict):
        return tuple((key, argument(each)) for key, each in value.items())
    if isinstance(value, slice):
        return ("slice", argument(value.start), argument(value.stop), argument(value.step))
    if isinstance(value, torch.SymInt | torch.SymBool | torch.SymFloat):
        return signature(value)
    # repr tells 1 from True and 1.0, and -0.0 from 0.0.
    return (type(value).__name__, repr(value))


def _attribute(node: Node) -> Hashable:
    """What a node of a branch, or of a constant inside of one, stands for."""
    owner = node.graph.owning_module
    value = getattr(owner, str(node.target), None) if "." not in str(node.target) else None
    if isinstance(value, torch.Tensor):
        # A number, as ExecuTorch's stages make them of Python's; the same tensor otherwise.
        return ("tensor", signature(value), value.item() if value.numel() == 1 else id(value))
    return ("graph", graph_structure(_module_of(node)))


def _module_of(node: Node) -> GraphModule:
    owner = node.graph.owning_module
    module = owner.get_submodule(str(node.target)) if owner is not None else None
    if not isinstance(module, GraphModule):
        raise TypeError(f"{node.name}: expected a graph behind get_attr, got {type(module).__name__}")
    return module

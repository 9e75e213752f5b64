"""The small pieces that formulas in a graph consist of: a product, a sum with a number, a cast.

Each function returns the pieces of what it has recognised, in doubt ``None``. Nothing is changed.
"""

from __future__ import annotations

import torch
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.passes.graph.meta import tensor_of

aten = torch.ops.aten


def operands(node: Node, op: torch._ops.OpOverload) -> tuple[Node, Node] | None:
    """The two tensors that a call of ``op`` takes."""
    if node.op != "call_function" or node.target is not op:
        return None
    tensors = [arg for arg in node.args if isinstance(arg, Node) and isinstance(arg.meta.get("val"), torch.Tensor)]
    return (tensors[0], tensors[1]) if len(tensors) == 2 else None


def plus_number(node: Node) -> tuple[Node, float] | None:
    """A tensor and the number that is added to it."""
    if node.target not in (aten.add.Tensor, aten.add.Scalar) or node.kwargs.get("alpha", 1) != 1 or len(node.args) != 2:
        return None
    for tensor, other in (node.args, node.args[::-1]):
        addend = number(other)
        if addend is not None and isinstance(tensor, Node) and number(tensor) is None:
            return tensor, addend
    return None


def number(value: object) -> float | None:
    """A number, or the one that a scalar tensor is filled with."""
    if isinstance(value, Node) and value.target is aten.full.default and not tensor_of(value).dim():
        value = value.args[1]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def uncast(node: Node) -> Node | None:
    """What ``node`` is in another dtype and in nothing else."""
    if node.target is not aten._to_copy.default:
        return None
    source = node.args[0]
    assert isinstance(source, Node)
    return source if tensor_of(source).device == tensor_of(node).device else None


def alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether shape and dtype are equal."""
    sizes = zip(a.shape, b.shape, strict=True) if a.dim() == b.dim() else ()
    return a.dim() == b.dim() and a.dtype == b.dtype and all(statically_known_true(x == y) for x, y in sizes)


def describe(tensor: torch.Tensor) -> str:
    """Dtype and shape."""
    return f"{tensor.dtype} {list(tensor.shape)}"


def name_of(node: Node) -> str:
    """The node's name and its operator, or what else it is."""
    if node.op == "placeholder":
        return f"{node.name}, an input"
    return f"{node.name} ({node.target})" if node.op == "call_function" else f"{node.name} ({node.op})"

"""The small pieces that formulas in a graph consist of: a product, a sum with a number, a cast.

Each function returns the pieces of what it has recognised, in doubt ``None``. Nothing is changed.
"""

from __future__ import annotations

import operator

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


def same_value(one: object, other: object, depth: int = 8) -> bool:
    """Whether two arguments are the same, or calls of the same operator on the same arguments."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(same_value(a, b, depth) for a, b in zip(one, other, strict=True))
    if not isinstance(one, Node) or not isinstance(other, Node):
        return type(one) is type(other) and one == other
    if one is other:
        return True
    op = one.target
    if not depth or one.op != "call_function" or op is not other.target or one.kwargs.keys() != other.kwargs.keys():
        return False
    if isinstance(op, torch._ops.OpOverload):
        is_function = not op._schema.is_mutable and torch.Tag.nondeterministic_seeded not in op.tags
    else:
        is_function = op is operator.getitem
    pairs = [(one.args, other.args), *((one.kwargs[name], other.kwargs[name]) for name in one.kwargs)]
    return is_function and all(same_value(a, b, depth - 1) for a, b in pairs)


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

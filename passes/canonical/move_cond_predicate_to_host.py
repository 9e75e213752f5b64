"""A condition on shapes is decided on the host, without asking the device."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.options import BackendConfig
from etcuda.passes.base import graph_modules, graph_pass
from etcuda.passes.graph.calls import insert_call

aten = torch.ops.aten

# Exact on integers, in Python as in the operator.
_INTEGER_OPS: dict[torch._ops.OpOverload, Callable[..., Any]] = {
    aten.add.Scalar: operator.add,
    aten.add.Tensor: operator.add,
    aten.eq.Scalar: operator.eq,
    aten.eq.Tensor: operator.eq,
    aten.ge.Scalar: operator.ge,
    aten.ge.Tensor: operator.ge,
    aten.gt.Scalar: operator.gt,
    aten.gt.Tensor: operator.gt,
    aten.le.Scalar: operator.le,
    aten.le.Tensor: operator.le,
    aten.lt.Scalar: operator.lt,
    aten.lt.Tensor: operator.lt,
    aten.mul.Scalar: operator.mul,
    aten.mul.Tensor: operator.mul,
    aten.ne.Scalar: operator.ne,
    aten.ne.Tensor: operator.ne,
    aten.sub.Scalar: operator.sub,
    aten.sub.Tensor: operator.sub,
}
_SAME_VALUE = frozenset({aten._to_copy.default, aten.alias.default, aten.clone.default, aten.reshape.default})
_INTEGERS = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})


@graph_pass(requires=("lower_edge_ops", "inline_scalar_constants", "view_copy_to_view"))
def move_cond_predicate_to_host(program: ExportedProgram, config: BackendConfig) -> int:
    """Replaces the predicate tensor of a ``cond`` that is computed from sizes and numbers by that number.

    Before: ``cond(gt(full([], sym_size(x, 0)), full([], 3)), ...)``.
    After: ``cond(operator.gt(sym_size(x, 0), 3), ...)``.
    A predicate that depends on data stays a tensor, which the generated code reads back from the device.
    """
    changed = 0
    for module in graph_modules(program):
        for node in list(module.graph.nodes):
            if node.target is not torch.ops.higher_order.cond:
                continue
            predicate = node.args[0]
            if not isinstance(predicate, Node) or not isinstance(predicate.meta.get("val"), torch.Tensor):
                continue
            number = _on_host(predicate, node, {})
            if number is None or not _is_symbolic_bool(number):
                continue
            node.args = (number, *node.args[1:])
            changed += 1
    return changed


def _is_symbolic_bool(number: object) -> bool:
    return isinstance(number, Node) and isinstance(number.meta["val"], torch.SymBool | bool)


def _on_host(node: object, before: Node, seen: dict[Node, object]) -> object | None:
    """The number that a tensor of one integer holds, as a node or a constant; ``None`` if it is not known so."""
    if not isinstance(node, Node):
        return node if isinstance(node, int) else None
    if node not in seen:
        seen[node] = _compute(node, before, seen)
    return seen[node]


def _compute(node: Node, before: Node, seen: dict[Node, object]) -> object | None:
    value = node.meta.get("val")
    if isinstance(value, torch.SymInt | torch.SymBool | int):
        return node
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or value.dtype not in _INTEGERS:
        return None
    if node.target is aten.full.default:
        return _on_host(node.args[1], before, seen)
    if node.target is aten.scalar_tensor.default:
        return _on_host(node.args[0], before, seen)
    if node.target in _SAME_VALUE:
        source = node.args[0]
        narrowed = isinstance(source, Node) and source.meta["val"].dtype != value.dtype != torch.int64
        return None if narrowed else _on_host(source, before, seen)
    if node.op != "call_function" or node.target not in _INTEGER_OPS or node.kwargs or len(node.args) != 2:
        return None
    left, right = (_on_host(arg, before, seen) for arg in node.args)
    if left is None or right is None:
        return None
    return insert_call(before, _INTEGER_OPS[node.target], (left, right))

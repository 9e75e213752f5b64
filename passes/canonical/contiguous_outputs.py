"""Every output owns its bytes, in the memory order that ExecuTorch planned."""

from __future__ import annotations

import operator

import torch
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Node

from etcuda.options import BackendConfig
from etcuda.passes.base import graph_pass
from etcuda.passes.canonical.record_output_layout import OUTPUT_DIM_ORDERS
from etcuda.passes.graph.calls import insert_call, returns_alias
from etcuda.passes.graph.meta import tensor_of

aten = torch.ops.aten


@graph_pass(requires=("record_output_layout", "view_copy_to_view", "decompose_conv"))
def contiguous_outputs(program: ExportedProgram, config: BackendConfig) -> int:
    """Clones an output that aliases an input, a constant or another output, or whose strides are not as planned.

    Before: ``return (permute(x), y, y)``. After: ``return (clone(permute(x)), y, clone(y))``.
    A buffer's new value is left alone when nothing else is returned with it: it is written back, not returned.
    """
    output = program.graph.output_node()
    orders = output.meta[OUTPUT_DIM_ORDERS]
    values = list(output.args[0])
    specs = program.graph_signature.output_specs
    owned = {_root(v) for v, s in zip(values, specs, strict=True) if s.kind != OutputKind.USER_OUTPUT}
    changed = 0
    for index, (value, spec) in enumerate(zip(values, specs, strict=True)):
        if not isinstance(value, Node) or spec.kind != OutputKind.USER_OUTPUT:
            continue
        if not isinstance(value.meta.get("val"), torch.Tensor):
            continue
        root = _root(value)
        if (
            root in owned
            or (isinstance(root, Node) and root.op in ("placeholder", "get_attr"))
            or not _has_order(tensor_of(value), orders[index])
        ):
            values[index] = clone_in_order(output, value, orders[index])
        else:
            owned.add(root)
            continue
        changed += 1
    output.args = (tuple(values),)
    return changed


def clone_in_order(before: Node, value: Node, order: tuple[int, ...]) -> Node:
    """Inserts a dense copy of ``value`` whose dimensions lie in memory in ``order``."""
    if order == tuple(range(len(order))):
        return insert_call(before, aten.clone.default, (value,), memory_format=torch.contiguous_format)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    permuted = insert_call(before, aten.permute.default, (value, list(order)))
    copied = insert_call(before, aten.clone.default, (permuted,), memory_format=torch.contiguous_format)
    return insert_call(before, aten.permute.default, (copied, inverse))


def _has_order(tensor: torch.Tensor, order: tuple[int, ...]) -> bool:
    return tensor.permute(order).is_contiguous()


def _root(value: object) -> object:
    """The node whose memory ``value`` may share: through views, and through operators that may return their input."""
    while isinstance(value, Node) and (base := _base(value)) is not None:
        value = base
    return value


def _base(node: Node) -> Node | None:
    """The node one step back that may share memory with ``node``."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return None
    first = node.args[0]
    if node.target is operator.getitem:
        return _base(first)  # a view of a list of views; the results of anything else are its own
    op = node.target
    if not isinstance(op, torch._ops.OpOverload):
        return None
    is_view = not op._schema.is_mutable and returns_alias(op)
    return first if is_view or op in _MAY_RETURN_INPUT else None


_MAY_RETURN_INPUT = frozenset({aten.reshape.default, aten.contiguous.default, aten.to.dtype, aten.flatten.using_ints})

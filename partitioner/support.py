"""Decides, node by node, whether the delegate can run it."""

from __future__ import annotations

import operator

import torch
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from etcuda.backend.options import BackendConfig
from etcuda.backend.shims import Side
from etcuda.partitioner.inductor_tables import Lowering, lowering_of
from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.table import RULE_OF
from etcuda.passes.edge_ops import ASSERTIONS, VIEW_OF_COPY, underlying

DTYPES = frozenset(
    {
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    }
)

CONTROL_FLOW = ("cond", "while_loop")


def side_of(config: BackendConfig) -> Side:
    """Which runtime the target's code links against."""
    return "host" if config.is_host else "cuda"


def refuse(node: Node, side: Side) -> Refusal | None:
    """The reason why ``node`` cannot be claimed, or ``None``.

    Args:
        node: a ``call_function`` node of an ATen or Edge program, with metadata.
        side: the target's side.
    """
    if node.target is operator.getitem:
        return _refuse_item(node, side)
    if "val" not in node.meta:
        return Refusal("the node has no metadata; run the program through torch.export or to_edge first")
    if is_symbolic_scalar(node):
        return _refuse_unbacked(node)
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return _refuse_control_flow(node, side)
    op = underlying(node.target)
    if op is None:
        return Refusal(f"{node.target} is not an ATen operator", {"target": str(node.target)})
    if op in ASSERTIONS:
        return None
    view = NodeView(node, op, side)
    refusal = _refuse_tensors(view) or _refuse_unbacked(node)
    if refusal is not None:
        return refusal
    if op in RULE_OF:
        return RULE_OF[op].refuse(view)
    return _refuse_lowering(view)


def is_symbolic_scalar(node: Node) -> bool:
    """Whether the node yields a number computed from shapes, on the host."""
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymBool | torch.SymFloat | int | float | bool)


def branches(node: Node) -> list[GraphModule]:
    """Graph modules that a control-flow node calls."""
    owner = node.graph.owning_module
    found = []
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            module = getattr(owner, str(source.target), None)
            if isinstance(module, GraphModule):
                found.append(module)
    return found


def _refuse_item(node: Node, side: Side) -> Refusal | None:
    source = node.args[0]
    if not isinstance(source, Node) or source.op != "call_function":
        return Refusal(f"getitem of {source} is no result of an operator", {"source": str(source)})
    refusal = refuse(source, side)
    return Refusal(f"it is a result of {source.name}, which is not claimed") if refusal is not None else None


def _refuse_tensors(view: NodeView) -> Refusal | None:
    for tensor in (*view.input_tensors, *view.result_tensors):
        if tensor.layout != torch.strided:
            return Refusal(f"layout {tensor.layout} is not dense", {"layout": tensor.layout})
        if tensor.dtype not in DTYPES:
            return Refusal(f"dtype {tensor.dtype} is not one the backend compiles", {"dtype": tensor.dtype})
        if tensor.is_quantized:
            return Refusal(f"quantized tensors are not compiled, got {tensor.dtype}", {"dtype": tensor.dtype})
    return None


def _refuse_unbacked(node: Node) -> Refusal | None:
    for source in (node, *node.all_input_nodes):
        symbols = free_unbacked_symbols(source.meta.get("val"))
        if symbols:
            names = ", ".join(sorted(map(str, symbols)))
            return Refusal(
                f"its size {names} depends on data, which only the running program knows", {"symbols": names}
            )
    return None


def _refuse_lowering(view: NodeView) -> Refusal | None:
    op = VIEW_OF_COPY.get(view.op, view.op)
    lowering = lowering_of(op)
    if lowering is Lowering.FALLBACK:
        return Refusal(f"Inductor calls a library kernel for {op}, and the runtime has no shim for it", {"op": str(op)})
    if lowering is Lowering.NONE:
        return Refusal(f"Inductor has no lowering for {op}", {"op": str(op)})
    return None


def _refuse_control_flow(node: Node, side: Side) -> Refusal | None:
    name = getattr(node.target, "__name__", str(node.target))
    if name not in CONTROL_FLOW:
        return Refusal(f"control flow {name} is not compiled, expected one of {', '.join(CONTROL_FLOW)}", {"op": name})
    for module in branches(node):
        for inner in module.graph.nodes:
            if inner.op != "call_function":
                continue
            refusal = refuse(inner, side)
            if refusal is not None:
                return Refusal(f"{inner.name} inside it is not claimed: {refusal.reason}", refusal.values)
    return _refuse_unbacked(node)

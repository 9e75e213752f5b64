"""Decides, node by node, whether the delegate can run it."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from etcuda.options import BackendConfig
from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.base import library_call
from etcuda.partitioner.rules.random import refuse_random
from etcuda.partitioner.rules.table import RULE_OF
from etcuda.passes.graph.edge_ops import ASSERTIONS, VIEW_OF_COPY, underlying
from etcuda.passes.graph.symbols import free_symbols
from etcuda.torch_private import Lowering, expression, has_device_function, lowering_of

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

QUANTIZED_NAMESPACES = frozenset({"quantized", "quantized_decomposed"})

# Lowered under the name of another overload.
REWRITTEN = frozenset({torch.ops.aten.upsample_nearest2d.vec})

# ExecuTorch describes tensors of at most so many dimensions.
MAX_RANK = 16

CONTROL_FLOW = ("cond", "map_impl", "scan", "while_loop")


def refuse(node: Node, config: BackendConfig) -> Refusal | None:
    """The reason why ``node`` cannot be claimed, or ``None``.

    Args:
        node: a ``call_function`` node of an ATen or Edge program, with metadata.
        config: target and options.
    """
    if node.target is operator.getitem:
        return _refuse_item(node, config)
    op = underlying(node.target)
    if op in ASSERTIONS:
        return None
    if node.meta.get("val") is None:
        return Refusal("the node has no metadata; run the program through torch.export or to_edge first")
    if is_symbolic_scalar(node):
        return _refuse_unbacked(node)
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return _refuse_control_flow(node, config)
    if op is None:
        return Refusal(f"{node.target} is not an ATen operator", {"target": str(node.target)})
    view = NodeView(node, op, config)
    refusal = _refuse_tensors(view) or _refuse_unbacked(node)
    if refusal is not None:
        return refusal
    if op in RULE_OF:
        return RULE_OF[op].refuse(view)
    return refuse_random(view) or _refuse_lowering(view)


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


def _refuse_item(node: Node, config: BackendConfig) -> Refusal | None:
    source = node.args[0]
    if not isinstance(source, Node) or source.op != "call_function":
        return Refusal(f"getitem of {source} is no result of an operator", {"source": str(source)})
    refusal = refuse(source, config)
    return Refusal(f"it is a result of {source.name}, which is not claimed") if refusal is not None else None


def _refuse_tensors(view: NodeView) -> Refusal | None:
    for tensor in (*view.input_tensors, *view.result_tensors):
        if tensor.layout != torch.strided:
            return Refusal(f"layout {tensor.layout} is not dense", {"layout": tensor.layout})
        if tensor.dtype not in DTYPES:
            return Refusal(f"dtype {tensor.dtype} is not one the backend compiles", {"dtype": tensor.dtype})
        if tensor.dim() > MAX_RANK:
            return Refusal(f"tensors have at most {MAX_RANK} dimensions, got {tensor.dim()}", {"rank": tensor.dim()})
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
    if op.namespace in QUANTIZED_NAMESPACES:
        return Refusal(f"quantized operators are not compiled, got {op}", {"op": str(op)})
    if "backward" in op._schema.name:
        return Refusal(f"gradients are not compiled, got {op}", {"op": str(op)})
    lowering = lowering_of(op)
    if lowering is Lowering.NONE and op not in REWRITTEN:
        return Refusal(f"Inductor has no lowering for {op}", {"op": str(op)})
    if lowering is Lowering.FALLBACK or (view.side == "cuda" and not has_device_function(op)):
        return library_call(view, str(op), op=str(op))
    return None


def _refuse_control_flow(node: Node, config: BackendConfig) -> Refusal | None:
    name = getattr(node.target, "__name__", str(node.target))
    if name not in CONTROL_FLOW:
        return Refusal(f"control flow {name} is not compiled, expected one of {', '.join(CONTROL_FLOW)}", {"op": name})
    for module in branches(node):
        for inner in module.graph.nodes:
            constant = getattr(module, str(inner.target), None) if inner.op == "get_attr" else None
            if isinstance(constant, torch.Tensor) and constant.dim() > 0:
                shape = tuple(constant.shape)
                reason = f"{inner.target} inside it is a constant of shape {shape}; make it a buffer of the module"
                return Refusal(reason, {"constant": str(inner.target), "shape": shape})
            if inner.op != "call_function":
                continue
            refusal = refuse(inner, config)
            if refusal is not None:
                return Refusal(f"{inner.name} inside it is not claimed: {refusal.reason}", refusal.values)
    return (_refuse_unbound(node, name) if name in ("map_impl", "scan") else None) or _refuse_unbacked(node)


def _refuse_unbound(node: Node, name: str) -> Refusal | None:
    """PyTorch's lowering makes the results of all rounds, whose sizes it knows from numbers that it can see."""
    carried: Any
    carried, scanned = ((), node.args[1]) if name == "map_impl" else node.args[1:3]
    assert isinstance(scanned, list | tuple)
    first = scanned[0]
    assert isinstance(first, Node)
    length = first.meta["val"].shape[0]
    seen = {expression(number.meta.get("val")) for number in node.all_input_nodes} | {expression(length)}
    results = [value for value in node.meta["val"][len(carried) :] if isinstance(value, torch.Tensor)]
    wanted = set().union(*(free_symbols(size) for value in results for size in (*value.size(), *value.stride())))
    if not wanted - seen:
        return None
    names = ", ".join(sorted(map(str, wanted - seen)))
    reason = (
        f"{name.removesuffix('_impl')} is compiled where its results have dynamic sizes along the dimension that it "
        f"goes over alone, got {names} in others; go over that dimension, or write its rounds as one batched operation"
    )
    return Refusal(reason, {"op": name, "symbols": names})

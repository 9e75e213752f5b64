"""Numbers are computed from the sizes of tensors, not passed in."""

from __future__ import annotations

from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.options import BackendConfig
from etcuda.passes.base import NodeError, graph_pass
from etcuda.passes.graph.calls import insert_call
from etcuda.passes.graph.meta import compute_meta
from etcuda.passes.graph.symbols import free_symbols, size_symbols
from etcuda.torch_private import build_expression, expression, input_spec

aten = torch.ops.aten


@graph_pass(requires=("lower_edge_ops",))
def bind_symbolic_inputs(program: ExportedProgram, config: BackendConfig) -> int:
    """Removes every input that is a number, which the partitioner grants only where a tensor input has its symbols.

    Before: ``def f(x, n): return view(x, [n, 4])``. After: ``def f(x): return view(x, [sym_size(x, 0), 4])``.
    ExecuTorch still passes the number in the call; the runtime reads the tensors among the arguments alone.
    """
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    numbers = [node for node in placeholders if expression(node.meta.get("val")) is not None]
    if not numbers:
        return 0
    known = size_symbols(placeholders)
    first = next(node for node in program.graph.nodes if node.op != "placeholder")
    sizes: dict[Any, Node] = {}
    for node in numbers:
        if node.users:
            node.replace_all_uses_with(_build(node, known, sizes, first))
        program.graph.erase_node(node)
    removed = {node.name for node in numbers}
    signature = program.graph_signature
    signature.input_specs = [spec for spec in signature.input_specs if spec.arg.name not in removed]
    for entry in program.module_call_graph:
        if entry.fqn == "" and entry.signature is not None:
            entry.signature.in_spec = input_spec(signature.user_inputs)
    return len(numbers)


def _build(node: Node, known: dict[Any, tuple[Node, int]], sizes: dict[Any, Node], first: Node) -> Any:
    value: Any = expression(node.meta["val"])
    missing = sorted(str(symbol) for symbol in free_symbols(node.meta["val"]) if symbol not in known)
    if missing:
        raise NodeError(
            node,
            f"expected a number that follows from the sizes of the tensor inputs, got {value}, where "
            f"{', '.join(missing)} is no such size; pass the tensor it belongs to into the same partition",
        )
    for symbol in free_symbols(node.meta["val"]):
        if symbol not in sizes:
            tensor, dim = known[symbol]
            sizes[symbol] = insert_call(first, aten.sym_size.int, (tensor, dim))
    if not free_symbols(node.meta["val"]):
        return value if isinstance(value, bool | int | float) else int(value)
    before = set(node.graph.nodes)
    with node.graph.inserting_before(first):
        result = build_expression(value, {symbol: sizes[symbol] for symbol in free_symbols(node.meta["val"])})
    for made in node.graph.nodes:
        if made not in before:
            compute_meta(made)
    return result

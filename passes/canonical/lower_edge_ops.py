"""Edge dialect to ATen."""

from __future__ import annotations

from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.options import BackendConfig
from etcuda.passes.base import NodeError, graph_modules, graph_pass
from etcuda.passes.graph.edge_ops import ASSERTIONS, DIM_ORDER_OPS, SAME_AS, underlying
from etcuda.torch_private import behind_edge

_MEMORY_FORMATS: dict[tuple[int, ...], torch.memory_format] = {
    (0, 2, 3, 1): torch.channels_last,
    (0, 2, 3, 4, 1): torch.channels_last_3d,
}


@graph_pass()
def lower_edge_ops(program: ExportedProgram, config: BackendConfig) -> int:
    """Replaces every Edge operator by its ATen operator, in control flow too, and drops assertions.

    Before: ``edge.dim_order_ops._to_dim_order_copy(x, dtype=fp16, dim_order=[0, 2, 3, 1])``.
    After: ``aten._to_copy(x, dtype=fp16, memory_format=channels_last)``.
    """
    changed = 0
    for module in graph_modules(program):
        for node in list(module.graph.nodes):
            if node.op != "call_function":
                continue
            op = underlying(node.target)
            if op is None or (op is node.target and op not in ASSERTIONS):
                continue
            changed += 1
            if op in ASSERTIONS:
                module.graph.erase_node(node)
                continue
            behind = behind_edge(node.target)
            if str(behind) in DIM_ORDER_OPS:
                node.kwargs = _with_memory_format(node)
            # Another library's operator keeps its name until it is decomposed: its shape function takes more dtypes.
            node.target = behind if str(behind) in SAME_AS else op
    return changed


def _with_memory_format(node: Node) -> dict[str, Any]:
    kwargs: dict[str, Any] = dict(node.kwargs)
    dim_order: Any = kwargs.pop("dim_order", None)
    if dim_order is None:
        return kwargs
    order = tuple(int(dim) for dim in dim_order)
    if order == tuple(range(len(order))):
        kwargs["memory_format"] = torch.contiguous_format
    elif order in _MEMORY_FORMATS:
        kwargs["memory_format"] = _MEMORY_FORMATS[order]
    else:
        raise NodeError(
            node,
            f"expected dim_order to be contiguous, channels_last (0, 2, 3, 1) or channels_last_3d (0, 2, 3, 4, 1), "
            f"got {order}; convert the tensor with .contiguous() in the model",
        )
    return kwargs

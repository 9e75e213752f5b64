"""Reductions of integers of 8 and 16 bits and of truth values on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.options import BackendConfig
from etcuda.passes.base import graph_modules, graph_pass
from etcuda.passes.graph.calls import arguments
from etcuda.passes.graph.dead_code import erase_dead
from etcuda.passes.graph.inline_function import inline_function
from etcuda.passes.graph.meta import refresh_meta

aten = torch.ops.aten

# Of 16 bits code for extremes of what C++ computes in 32 bits, as quotients, does not compile.
_NARROW = frozenset({torch.int8, torch.uint8, torch.int16})
# Of truth values Inductor takes no sum and no product.
_TRUTH = frozenset({aten.prod.default, aten.prod.dim_int, aten.sum.default, aten.sum.dim_IntList})

# Reductions that are computed in the dtype of their input, or in one that the call names.
REDUCTIONS = frozenset(
    {
        aten.amax.default,
        aten.amin.default,
        aten.aminmax.default,
        aten.argmax.default,
        aten.argmin.default,
        aten.max.default,
        aten.max.dim,
        aten.min.default,
        aten.min.dim,
        aten.prod.default,
        aten.prod.dim_int,
        aten.sum.default,
        aten.sum.dim_IntList,
    }
)


# Of bytes torch makes bytes, and Inductor truth values.
TRUTH_OF_BYTES = frozenset(
    {aten.all.default, aten.all.dim, aten.all.dims, aten.any.default, aten.any.dim, aten.any.dims}
)


@graph_pass(requires=("lower_edge_ops", "bind_symbolic_inputs", "view_copy_to_view", "decompose_library_calls"))
def widen_reductions(program: ExportedProgram, config: BackendConfig) -> int:
    """Reduces integers of 8 and 16 bits in int32 on the host; ``any`` and ``all`` of bytes are bytes on every target.

    Inductor's vectors of 8-bit integers yield wrong extremes, and wrong indices of them (pytorch/pytorch#191499).

    Before: ``amax(x)``, x int8. After: ``_to_copy(amax(_to_copy(x, int32)), int8)``, one loop.
    """
    changed = 0
    for module in graph_modules(program):
        calls = [node for node in module.graph.nodes if _is_wrong(node, config.is_host)]
        for node in calls:
            inline_function(node, _widened(node), *node.all_input_nodes)
        if calls:
            erase_dead(module.graph)
            refresh_meta(module.graph)
        changed += len(calls)
    return changed


def _is_wrong(node: Node, host: bool) -> bool:
    """Whether generated code does not do what the call says."""
    if node.target not in REDUCTIONS | TRUTH_OF_BYTES:
        return False
    given = arguments(node)
    own, named = given["self"].meta["val"].dtype, given.get("dtype")
    if node.target in TRUTH_OF_BYTES:
        return bool(own == torch.uint8)
    return host and (own in _NARROW or named in _NARROW or (named == torch.bool and node.target in _TRUTH))


def _widened(node: Node) -> Callable[..., Any]:
    given = arguments(node)
    expected: Any = node.meta["val"]
    op: Any = node.target

    def reduce(*values: Any) -> Any:
        by_node = dict(zip(node.all_input_nodes, values, strict=True))
        call = dict(torch.fx.map_arg(given, by_node.__getitem__))
        if call.get("dtype") is not None and not call["dtype"].is_floating_point:
            call["dtype"] = torch.int64 if call["dtype"] == torch.int64 else torch.int32
        found = op(**call | {"self": call["self"].to(torch.int32)})
        if isinstance(found, Tensor):
            return found.to(expected.dtype)
        return tuple(each.to(like.dtype) for each, like in zip(found, expected, strict=True))

    return reduce

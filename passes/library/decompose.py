"""Calls that Inductor would hand to a library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.options import BackendConfig
from etcuda.passes.base import graph_modules, graph_pass
from etcuda.passes.graph.calls import arguments
from etcuda.passes.graph.dead_code import erase_dead
from etcuda.passes.graph.edge_ops import underlying
from etcuda.passes.graph.inline_function import inline_function
from etcuda.passes.graph.meta import refresh_meta
from etcuda.passes.library import bags, grouped, joins, scans, scatter, search, sorting, sums

aten = torch.ops.aten

# Each takes whether the target is the host, then the operator's arguments by name.
DECOMPOSITIONS: Mapping[torch._ops.OpOverload, Callable[..., Any]] = {
    aten._embedding_bag.default: bags.embedding_bag,
    aten._embedding_bag_forward_only.default: bags.embedding_bag,
    aten._grouped_mm.default: grouped.grouped_mm,
    aten._unsafe_index_put.default: sums.index_put,
    aten.bucketize.Scalar: search.bucketize_scalar,
    aten.bucketize.Tensor: search.bucketize,
    aten.cat.default: joins.cat,
    aten.cummax.default: scans.cummax,
    aten.cummin.default: scans.cummin,
    aten.cumprod.default: scans.cumprod,
    aten.cumsum.default: scans.cumsum,
    aten.histc.default: search.histc,
    aten.index_add.default: sums.index_add,
    aten.index_put.default: sums.index_put,
    aten.index_reduce.default: scatter.index_reduce,
    aten.kthvalue.default: sorting.kthvalue,
    aten.logcumsumexp.default: scans.logcumsumexp,
    aten.masked_scatter.default: search.masked_scatter,
    aten.median.default: sorting.median,
    aten.median.dim: sorting.median,
    aten.mode.default: sorting.mode,
    aten.nanmedian.default: sorting.nanmedian,
    aten.nanmedian.dim: sorting.nanmedian,
    aten.nonzero_static.default: search.nonzero_static,
    aten.repeat_interleave.Tensor: search.repeat_interleave,
    aten.scatter.reduce: scatter.scatter_named,
    aten.scatter.src: scatter.scatter_src,
    aten.scatter.value_reduce: scatter.scatter_value,
    aten.scatter_add.default: scatter.scatter_add,
    aten.scatter_reduce.two: scatter.scatter_reduce,
    aten.searchsorted.Scalar: search.searchsorted_scalar,
    aten.searchsorted.Tensor: search.searchsorted,
    aten.sort.default: sorting.sort,
    aten.sort.stable: sorting.sort,
    aten.topk.default: sorting.topk,
}

# Where an operator is in the table for some of its calls: whether a call is one of them, from the same arguments.
NEEDED: Mapping[torch._ops.OpOverload, Callable[..., bool]] = {
    aten._unsafe_index_put.default: sums.is_accumulated,
    aten.cat.default: joins.is_of_bytes,
    aten.index_put.default: sums.is_accumulated,
    aten.scatter.src: scatter.is_of_other_bits,
}


@graph_pass(requires=("lower_edge_ops", "bind_symbolic_inputs", "view_copy_to_view"))
def decompose_library_calls(program: ExportedProgram, config: BackendConfig) -> int:
    """Replaces calls that Inductor would hand to a library kernel.

    Before: ``topk(x, 8)``, x (4, 128000). After, for a GPU: ``sort`` of runs of 512 elements, the first 8 of each,
    sorted in turn; on the host ``sort``, which the runtime has.
    """
    changed = 0
    for module in graph_modules(program):
        calls = [node for node in module.graph.nodes if _is_needed(node, config.is_host)]
        for node in calls:
            node.target = underlying(node.target)
            _inline(node, DECOMPOSITIONS[node.target], config.is_host)
        if calls:
            erase_dead(module.graph)
            refresh_meta(module.graph)
        changed += len(calls)
    return changed


def _is_needed(node: Node, host: bool) -> bool:
    op = underlying(node.target)
    if op is None or op not in DECOMPOSITIONS:
        return False
    is_needed = NEEDED.get(op)
    return is_needed is None or is_needed(host, **torch.fx.map_arg(arguments(node), lambda source: source.meta["val"]))


def _inline(node: Node, function: Callable[..., Any], host: bool) -> None:
    given = arguments(node)
    nodes = list(dict.fromkeys(node.all_input_nodes))

    def call(*values: Any) -> Any:
        by_node = dict(zip(nodes, values, strict=True))
        return function(host, **torch.fx.map_arg(given, by_node.__getitem__))

    inline_function(node, call, *nodes)

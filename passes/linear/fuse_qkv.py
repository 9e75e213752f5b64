"""Projections of one input, such as query, key and value, become one product."""

from __future__ import annotations

import logging

from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.options import BackendConfig
from etcuda.passes.base import graph_pass
from etcuda.passes.graph.meta import refresh_meta
from etcuda.passes.linear.call import LinearCall
from etcuda.passes.linear.join import fuse, linear_calls, refuse_fusion

log = logging.getLogger(__name__)


@graph_pass(requires=("lower_edge_ops", "bind_symbolic_inputs", "view_copy_to_view", "fuse_mlp"))
def fuse_qkv(program: ExportedProgram, config: BackendConfig) -> int:
    """Joins the products that read one input and whose weights have one format.

    Before: ``q, k, v = int4_linear(x, wq), int4_linear(x, wk), int4_linear(x, wv)``.
    After: ``y = int4_linear(x, wq | wk | wv)``, ``q, k, v`` slices of it.
    Every row of a product is computed as before, so that results are equal bit for bit; where tensor cores may compute
    it, ``split_joined`` takes it apart again. A weight of another format (more bits) stays apart; the log says why.
    """
    by_input: dict[Node, list[LinearCall]] = {}
    for call in linear_calls(program):
        by_input.setdefault(call.x, []).append(call)
    changed = 0
    for calls in by_input.values():
        groups: list[list[LinearCall]] = []
        for call in calls:
            reasons = []
            for group in groups:
                reason = refuse_fusion(program, [*group, call])
                if reason is None:
                    group.append(call)
                    break
                reasons.append(f"from {group[0].node.name}: {reason}")
            else:
                if reasons:
                    log.info("%s stays apart %s", call.node.name, "; ".join(reasons))
                groups.append([call])
        for group in groups:
            if len(group) > 1:
                fuse(program, group)
                changed += len(group)
    if changed:
        refresh_meta(program.graph)
    return changed

"""The gate and the up projection of a gated block become one product."""

from __future__ import annotations

import logging

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.options import BackendConfig
from etcuda.passes.base import graph_pass
from etcuda.passes.graph.meta import refresh_meta
from etcuda.passes.linear.call import LinearCall
from etcuda.passes.linear.join import fuse, linear_calls, refuse_fusion

log = logging.getLogger(__name__)

aten = torch.ops.aten

_SAME_ELEMENTS = frozenset(
    {aten._to_copy.default, aten.alias.default, aten.clone.default, aten.reshape.default, aten.view.default}
)


@graph_pass(requires=("lower_edge_ops", "bind_symbolic_inputs", "view_copy_to_view"))
def fuse_mlp(program: ExportedProgram, config: BackendConfig) -> int:
    """Joins gate and up of ``activation(gate(x)) * up(x)``, whose weights have one format.

    Before: ``mul(silu(int4_linear(x, gate)), int4_linear(x, up))``, each [I, H].
    After: ``y = int4_linear(x, gate | up)``, [2I, H], ``mul(silu(y[..., :I]), y[..., I:])``.
    Every row of a product is computed as before, so that results are equal bit for bit; where tensor cores may compute
    it, ``split_joined`` takes it apart again. Other pairs stay apart; the log says why.
    """
    calls = {call.node: call for call in linear_calls(program)}
    pairs: dict[frozenset[Node], list[LinearCall]] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target is aten.mul.Tensor:
            pair = _factors(node, calls)
            if pair is not None:
                pairs.setdefault(frozenset(call.node for call in pair), pair)
    changed = 0
    fused: set[Node] = set()
    for nodes, pair in pairs.items():
        if nodes & fused:
            continue
        reason = refuse_fusion(program, pair)
        if reason is not None:
            log.info("%s and %s stay apart: %s", pair[0].node.name, pair[1].node.name, reason)
            continue
        fused |= nodes
        fuse(program, pair)
        changed += 2
    if changed:
        refresh_meta(program.graph)
    return changed


def _factors(node: Node, calls: dict[Node, LinearCall]) -> list[LinearCall] | None:
    """The two products of one input that the factors are computed from, in the graph's order."""
    found = [_source(factor, calls) for factor in node.args if isinstance(factor, Node)]
    if len(found) != 2 or found[0] is None or found[1] is None or found[0] is found[1]:
        return None
    pair = [calls[each] for each in calls if each in found]
    return pair if pair[0].x is pair[1].x else None


def _source(node: Node, calls: dict[Node, LinearCall]) -> Node | None:
    """The one product that a tensor is computed from, element by element; ``None`` if there is none or several."""
    found: set[Node] = set()
    pending, seen = [node], {node}
    while pending:
        each = pending.pop()
        if each in calls:
            found.add(each)
            continue
        op = each.target
        if not isinstance(op, torch._ops.OpOverload):
            return None
        if op not in _SAME_ELEMENTS and torch.Tag.pointwise not in op.tags:
            return None
        inputs = [n for n in each.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
        pending += [n for n in inputs if n not in seen]
        seen.update(inputs)
    return found.pop() if len(found) == 1 else None

"""Attention goes to our kernels, or to its plain formula where no kernel serves it."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.export.exported_program import ExportedProgram
from torch.fx import GraphModule, Node

from etcuda.kernels.attention.cluster_op import refuse_cluster
from etcuda.kernels.attention.problem import AttentionProblem, refuse
from etcuda.kernels.attention.reference import attention_reference
from etcuda.kernels.attention.select import Choice, choose, choose_split, choose_tiled, split_limit
from etcuda.kernels.common.device import Device
from etcuda.options import BackendConfig
from etcuda.passes.attention.call import CALLS, AttentionCall, problem_of, read_call
from etcuda.passes.attention.check import check_rewrite
from etcuda.passes.attention.simplify import simplify
from etcuda.passes.base import graph_modules, graph_pass
from etcuda.passes.graph.branches import Branch, insert_choice
from etcuda.passes.graph.calls import insert_call
from etcuda.passes.graph.dead_code import erase_dead
from etcuda.passes.graph.inline_function import inline_function
from etcuda.passes.graph.meta import refresh_meta, tensor_of
from etcuda.torch_private import bounds

log = logging.getLogger(__name__)

aten = torch.ops.aten


@graph_pass(requires=("lower_edge_ops", "bind_symbolic_inputs", "inline_scalar_constants", "view_copy_to_view"))
def route_attention(program: ExportedProgram, config: BackendConfig) -> int:
    """Replaces every ``scaled_dot_product_attention`` and every ``etcuda.attention``.

    Before: ``scaled_dot_product_attention(q, k, v, le(arange(0, 4096), unsqueeze(positions, 1)))``.
    After: ``etcuda.attention_split(q, k, v, None, None, positions, ...)``, where the table or the model prefers it.
    Where L_q is dynamic and the split kernel serves some of its values better, the call becomes a ``cond`` on L_q,
    which the host decides. What no kernel serves, and everything on the host, becomes its formula.
    """
    changed = 0
    for module in graph_modules(program):
        here = 0
        for node in list(module.graph.nodes):
            if node.op == "call_function" and node.target in CALLS:
                _route(module, node, config)
                here += 1
        if here:
            erase_dead(module.graph)
            refresh_meta(module.graph)
        changed += here
    return changed


def _route(module: GraphModule, node: Node, config: BackendConfig) -> None:
    call = read_call(node)
    if isinstance(config.target, str) or not config.options.attention_kernels:
        _inline_reference(node, call)
        return
    reason = _unsupported_shapes(call)
    problem = None if reason else problem_of(call)
    reason = reason or (refuse(problem) if problem else None)
    if problem is None or reason is not None:
        log.info("%s is computed by its formula: %s", node.name, reason)
        _inline_reference(node, call)
        return
    simpler = simplify(node, call)
    if config.options.check_attention:
        check_rewrite(node, call, simpler)
    result = _insert(module, node, simpler, problem_of(simpler), config.target)
    node.replace_all_uses_with(result)
    module.graph.erase_node(node)


def _unsupported_shapes(call: AttentionCall) -> str | None:
    q, k, v = (tensor_of(node) for node in (call.q, call.k, call.v))
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        return f"q, k and v have 4 dimensions, got {q.dim()}, {k.dim()} and {v.dim()}"
    if q.shape[3] != v.shape[3]:
        return f"values are as wide as keys, got {v.shape[3]} and {q.shape[3]}"
    return None


def _inline_reference(node: Node, call: AttentionCall) -> None:
    optional = {"mask": call.mask, "positions": call.positions, "sinks": call.sinks}
    given = {name: tensor for name, tensor in optional.items() if tensor is not None}
    function = functools.partial(_formula, call, tuple(given))
    inline_function(node, function, call.q, call.k, call.v, *given.values())


def _formula(call: AttentionCall, names: tuple[str, ...], q: Tensor, k: Tensor, v: Tensor, *optional: Tensor) -> Tensor:
    return attention_reference(
        q, k, v, **dict(zip(names, optional, strict=True)), scale=call.scale, causal=call.causal, window=call.window,
        softcap=call.softcap, ring=call.ring,
    )  # fmt: skip


def _insert(module: GraphModule, node: Node, call: AttentionCall, problem: AttentionProblem, device: Device) -> Node:
    """The call's replacement, in front of ``node``."""
    limit = split_limit(problem, device)
    l_q = tensor_of(call.q).shape[2]
    least, most = bounds(l_q)
    if least > limit or (most is not None and most <= limit):
        mask, sinks = (None if each is None else tensor_of(each) for each in (call.mask, call.sinks))
        reason = refuse_cluster(tensor_of(call.q), tensor_of(call.k), tensor_of(call.v), mask, sinks)
        choice = choose(problem, device, one_kernel=reason is None)
        if reason is not None and choice.kernel == "split":
            log.info("%s is no call for attention_cluster: %s", node.name, reason)
        log.info("%s goes to %s %s: %s", node.name, choice.kernel, choice.config, choice.source)
        return _insert_kernel(node, call, choice)
    few = choose_split(dataclasses.replace(problem, l_q=min(problem.l_q, limit), max_l_q=limit), device)
    many = choose_tiled(dataclasses.replace(problem, l_q=max(problem.l_q, limit + 1), max_l_q=None), device)
    size = insert_call(node, aten.sym_size.int, (call.q, 2))
    branches = (_branch(call, few), _branch(call, many))
    (result,) = insert_choice(module, node, size, limit, branches, call.operands, [node])
    log.info("%s: L_q <= %d goes to %s, more to %s", node.name, limit, few, many)
    return result


def _branch(call: AttentionCall, choice: Choice) -> Branch:
    def build(module: GraphModule, before: Node, inside: Mapping[Node, Node]) -> list[Node]:
        return [_insert_kernel(before, call.on(inside), choice)]

    return Branch(f"attention_{choice.kernel}", build)


def _insert_kernel(before: Node, call: AttentionCall, choice: Choice) -> Node:
    op = getattr(torch.ops.etcuda, f"attention_{choice.kernel}").default
    return insert_call(before, op, (*call.tensors, *call.numbers, *choice.config.to_args()), **call.extras)

"""Products with quantised weights go to our kernels; on the host, and for look-ups, to their formula."""

from __future__ import annotations

import dataclasses
import logging

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import GraphModule, Node

from etcuda.kernels.common.device import supports_pdl
from etcuda.kernels.linear.problem import refuse
from etcuda.options import BackendConfig
from etcuda.passes.base import NodeError, graph_modules, graph_pass
from etcuda.passes.graph.calls import insert_call
from etcuda.passes.graph.dead_code import erase_dead
from etcuda.passes.graph.meta import refresh_meta, tensor_of
from etcuda.passes.graph.program_constants import target_of
from etcuda.passes.linear.call import ROWS_OF, LinearCall, is_everywhere, read_linear
from etcuda.passes.linear.choose import Step, may_take_tensor_cores, problem, steps
from etcuda.passes.linear.inline_formula import inline_embeddings, inline_linear
from etcuda.passes.linear.insert.insert_steps import insert_steps
from etcuda.target import CudaTarget

log = logging.getLogger(__name__)

aten = torch.ops.aten


@graph_pass(requires=("lower_edge_ops", "bind_symbolic_inputs", "view_copy_to_view"))
def route_linear(program: ExportedProgram, config: BackendConfig) -> int:
    """Replaces every ``int4_linear``, ``int8_linear``, ``int4_embedding`` and ``int8_embedding``.

    Before: ``q, k = int4_linear(x, ...), int4_linear(x, ...)``.
    After: ``r = quantize_activation(x)``, ``q, k = int4_matvec_quantized(*r, ...), int4_matvec_quantized(*r, ...)``, or
    what the table names for that M; for many tokens, ``int4_matmul_reordered`` on ``reorder_activation(x)``.
    Where M is dynamic and the choice depends on it, calls of one input become one ``cond`` on M, which the host
    decides; a gated activation that only they read is computed in its branches, where the kernel that quantizes or
    reorders it can compute it too. What no kernel serves, everything on the host, and look-ups become their formula.
    """
    changed = 0
    for module in graph_modules(program):
        here = inline_embeddings(module)
        calls = [call for node in module.graph.nodes if (call := read_linear(node)) is not None]
        here += len(calls)
        if isinstance(config.target, CudaTarget):
            for group in _by_input(_served(calls)):
                _route(program, module, group, config.target)
        else:
            for call in calls:
                inline_linear(call)
        if here:
            erase_dead(module.graph)
            refresh_meta(module.graph)
        changed += here
    return changed


def _served(calls: list[LinearCall]) -> list[LinearCall]:
    """Calls that kernels serve; the others become their formula."""
    served = []
    for call in calls:
        reason = refuse(problem(call))
        if reason is None:
            served.append(call)
        else:
            log.info("%s is computed by its formula: %s", call.node.name, reason)
            inline_linear(call)
    return served


def _by_input(calls: list[LinearCall]) -> list[list[LinearCall]]:
    """Calls that read the same activations, as far as one place in the graph has all that they take."""
    found: dict[Node, list[LinearCall]] = {}
    alone = []
    for call in calls:
        if all(is_everywhere(node) for node in call.operands):
            found.setdefault(call.x, []).append(call)
        else:
            alone.append([call])
    return [*found.values(), *alone]


def _route(program: ExportedProgram, module: GraphModule, calls: list[LinearCall], target: CudaTarget) -> None:
    calls = [call.now() for call in calls]
    found = steps(calls, target)
    for call in calls:
        if len(call.joined) > 1 and may_take_tensor_cores(call, target):
            raise NodeError(call.node, "a joined product would go to tensor cores; run split_joined before this pass")
    dense = [_dense(call) for call in calls]
    # A kernel that starts early reads its weight before those in front of it have ended: none of them may write it.
    pdl = int(supports_pdl(target) and all(_is_weight(program, module, n) for call in dense for n in call.operands))
    results = insert_steps(module, calls[0].node, dense, found, target, pdl)
    for call, result in zip(calls, results, strict=True):
        call.node.replace_all_uses_with(result)
        module.graph.erase_node(call.node)
    _log(calls, found)


def _is_weight(program: ExportedProgram, module: GraphModule, node: Node) -> bool:
    """Whether nothing writes a tensor while the program runs. A branch does not know what it is handed."""
    whole = node.args[0] if ROWS_OF in node.meta else node
    return module is program.graph_module and target_of(program, whole) is not None


def _dense(call: LinearCall) -> LinearCall:
    """The call on tensors whose rows follow each other in memory."""
    copies = [None if node is None else _contiguous(call.node, node) for node in (*call.stored, call.bias)]
    return dataclasses.replace(call, stored=tuple(copies[:-1]), bias=copies[-1])


def _contiguous(before: Node, node: Node) -> Node:
    if tensor_of(node).is_contiguous():
        return node
    return insert_call(before, aten.clone.default, (node,), memory_format=torch.contiguous_format)


def _log(calls: list[LinearCall], found: list[Step]) -> None:
    for step in found:
        most = "any number of" if step.most is None else f"up to {step.most}"
        for call, choice in zip(calls, step.choices, strict=True):
            log.info(
                "%s, %s tokens, goes to %s %s: %s", call.node.name, most, choice.kernel, choice.config, choice.source
            )

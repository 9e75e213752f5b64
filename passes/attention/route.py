"""Attention goes to our kernels, or to its plain formula where no kernel serves it."""

from __future__ import annotations

import dataclasses
import functools
import logging
import operator
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import Graph, GraphModule, Node

import etcuda.kernels  # noqa: F401  registers the operators
from etcuda.kernels.attention.problem import FULL, AttentionProblem, refuse
from etcuda.kernels.attention.reference import attention_reference
from etcuda.kernels.attention.select import Choice, choose, choose_split, choose_tiled, split_limit
from etcuda.kernels.common.device import Device
from etcuda.options import BackendConfig
from etcuda.passes.attention.call import AttentionCall, problem_of, read_call
from etcuda.passes.attention.check import check_rewrite
from etcuda.passes.base import graph_modules, graph_pass
from etcuda.passes.graph.calls import insert_call
from etcuda.passes.graph.inline_function import inline_function
from etcuda.passes.graph.meta import compute_meta, refresh_meta, tensor_of
from etcuda.passes.graph.symbols import bounds
from etcuda.passes.recognize.mask import Bound, NotRecognizedError, recognize_mask

log = logging.getLogger(__name__)

aten = torch.ops.aten


@graph_pass(requires=("lower_edge_ops", "bind_symbolic_inputs", "inline_scalar_constants", "view_copy_to_view"))
def route_attention(program: ExportedProgram, config: BackendConfig) -> int:
    """Replaces every ``scaled_dot_product_attention``.

    Before: ``scaled_dot_product_attention(q, k, v, le(arange(0, 4096), unsqueeze(positions, 1)))``.
    After: ``etcuda.attention_split(q, k, v, None, None, positions, ...)``, where the table or the model prefers it.
    Query rows of a dynamic number, some of which the split kernel serves better, become a ``cond`` on that number,
    which the host decides. What no kernel serves, and everything on the host, becomes its formula.
    """
    changed = 0
    for module in graph_modules(program):
        here = 0
        for node in list(module.graph.nodes):
            if node.op == "call_function" and node.target is aten.scaled_dot_product_attention.default:
                _route(module, node, config)
                here += 1
        if here:
            module.graph.eliminate_dead_code()
            refresh_meta(module.graph)
        changed += here
    return changed


def _route(module: GraphModule, node: Node, config: BackendConfig) -> None:
    call = read_call(node)
    if isinstance(config.target, str):
        _inline_reference(node, call)
        return
    reason = _unsupported_shapes(call)
    problem = None if reason else problem_of(call)
    reason = reason or (refuse(problem) if problem else None)
    if problem is None or reason is not None:
        log.info("%s is computed by its formula: %s", node.name, reason)
        _inline_reference(node, call)
        return
    simpler = _without_mask(node, _without_repeated_heads(call))
    if config.options.check_attention:
        check_rewrite(node, call, simpler)
    problem = problem_of(simpler)
    result = _insert(module, node, simpler, problem, config.target)
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
    tensors = [tensor for tensor in (call.q, call.k, call.v, call.mask) if tensor is not None]
    function = functools.partial(attention_reference, scale=call.scale, causal=call.causal)
    inline_function(node, function, *tensors)


def _without_repeated_heads(call: AttentionCall) -> AttentionCall:
    """Keys and values whose heads were repeated for each query head of a group are taken as they were before."""
    k, v = _before_repeat(call.k), _before_repeat(call.v)
    same = k is not None and v is not None and tensor_of(k).shape[1] == tensor_of(v).shape[1]
    return dataclasses.replace(call, k=k, v=v) if same and k is not None and v is not None else call


def _before_repeat(node: Node) -> Node | None:
    """``x`` of ``reshape(expand(unsqueeze(x, 2), [b, heads, group, length, width]), [b, heads * group, ...])``."""
    source = node
    while source.target is aten.clone.default:
        source = source.args[0]  # type: ignore[assignment]
    if source.target not in (aten.reshape.default, aten.view.default):
        return None
    expanded: Any = source.args[0]
    while expanded.target is aten.clone.default:
        expanded = expanded.args[0]
    if expanded.target is not aten.expand.default:
        return None
    single: Any = expanded.args[0]
    if single.target is not aten.unsqueeze.default or single.args[1] % single.meta["val"].dim() != 2:
        return None
    original: Node = single.args[0]
    whole, before = tensor_of(expanded), tensor_of(original)
    if before.dim() != 4 or whole.dim() != 5 or [*whole.shape[:2], *whole.shape[3:]] != list(before.shape):
        return None
    heads = before.shape[1] * whole.shape[2]
    if list(tensor_of(node).shape) != [before.shape[0], heads, before.shape[2], before.shape[3]]:
        return None
    return original


def _without_mask(node: Node, call: AttentionCall) -> AttentionCall:
    """The call with kernel arguments in place of a mask that they are equal to."""
    if call.mask is None or call.causal != FULL:
        return call
    try:
        found = recognize_mask(call.mask, call.q, call.k)
    except NotRecognizedError as reason:
        log.info("%s reads its mask %s: %s", node.name, call.mask.name, reason)
        return call
    batch, _, l_q, _ = tensor_of(call.q).shape
    kv_len = None if found.kv_len is None else _insert_lengths(node, found.kv_len, batch)
    positions = None if found.positions is None else _insert_positions(node, found.positions, batch, l_q)
    return dataclasses.replace(
        call, mask=None, kv_len=kv_len, positions=positions, causal=found.causal, window=found.window
    )


def _insert_lengths(node: Node, bound: Bound, batch: int | torch.SymInt) -> Node:
    """[batch]."""
    lengths = _with_offset(node, bound)
    if tensor_of(lengths).dim() != 1:
        lengths = insert_call(node, aten.reshape.default, (lengths, [-1]))
    if tensor_of(lengths).shape[0] == 1 and batch != 1:
        return insert_call(node, aten.expand.default, (lengths, [_size(node, batch)]))
    return lengths


def _insert_positions(node: Node, bound: Bound, batch: int | torch.SymInt, l_q: int | torch.SymInt) -> Node:
    """[L_q], or [1 or batch, L_q]."""
    positions = _with_offset(node, bound)
    if l_q == 1:
        return insert_call(node, aten.reshape.default, (positions, [-1, 1]))
    if tensor_of(positions).dim() == 1 + bound.by_batch:
        return positions
    rows = _size(node, batch) if bound.by_batch else 1
    return insert_call(node, aten.reshape.default, (positions, [rows, -1]))


def _with_offset(node: Node, bound: Bound) -> Node:
    if bound.offset == 0:
        return bound.source
    return insert_call(node, aten.add.Tensor, (bound.source, bound.offset))


def _size(node: Node, size: int | torch.SymInt) -> object:
    if isinstance(size, int):
        return size
    q: Any = node.args[0]
    return insert_call(node, aten.sym_size.int, (q, 0))


def _insert(module: GraphModule, node: Node, call: AttentionCall, problem: AttentionProblem, device: Device) -> Node:
    """The call's replacement, in front of ``node``."""
    limit = split_limit(problem, device)
    l_q = tensor_of(call.q).shape[2]
    least, most = bounds(l_q)
    if least > limit or (most is not None and most <= limit):
        return _insert_kernel(node, call, choose(problem, device))
    few = dataclasses.replace(problem, l_q=min(problem.l_q, limit), max_l_q=limit)
    many = dataclasses.replace(problem, l_q=max(problem.l_q, limit + 1), max_l_q=None)
    return _insert_cond(module, node, call, limit, choose_split(few, device), choose_tiled(many, device))


def _insert_kernel(node: Node, call: AttentionCall, choice: Choice) -> Node:
    log.info("%s goes to %s %s: %s", node.name, choice.kernel, choice.config, choice.source)
    return insert_call(node, _operator(choice), (*call.tensors, *call.numbers, *dataclasses.astuple(choice.config)))


def _operator(choice: Choice) -> torch._ops.OpOverload:
    found: torch._ops.OpOverload = getattr(torch.ops.etcuda, f"attention_{choice.kernel}").default
    return found


def _insert_cond(module: GraphModule, node: Node, call: AttentionCall, limit: int, few: Choice, many: Choice) -> Node:
    """``cond(L_q <= limit, few, many)``."""
    graph = module.graph
    operands = [tensor for tensor in call.tensors if tensor is not None]
    length = insert_call(node, aten.sym_size.int, (call.q, 2))
    with graph.inserting_before(node):
        predicate = graph.call_function(operator.le, (length, limit))
    compute_meta(predicate)
    names = [_add_branch(module, call, choice, operands) for choice in (few, many)]
    with graph.inserting_before(node):
        branches = [graph.get_attr(name) for name in names]
        cond = graph.call_function(torch.ops.higher_order.cond, (predicate, *branches, tuple(operands)))
    outputs = [getattr(module, name).graph.output_node().args[0] for name in names]
    cond.meta = {**node.meta, "val": tuple(value.meta["val"] for value in outputs[0])}
    with graph.inserting_before(node):
        result = graph.call_function(operator.getitem, (cond, 0))
    result.meta = {**node.meta, "val": cond.meta["val"][0]}
    log.info("%s: L_q <= %d goes to %s, more to %s", node.name, limit, few, many)
    return result


def _add_branch(module: GraphModule, call: AttentionCall, choice: Choice, operands: list[Node]) -> str:
    """A submodule that calls one kernel on the operands."""
    graph = Graph()
    inner: dict[Node, Node] = {}
    for operand in operands:
        if operand not in inner:
            inner[operand] = graph.placeholder(operand.name)
            inner[operand].meta["val"] = operand.meta["val"]
        else:
            graph.placeholder(f"{operand.name}_again").meta["val"] = operand.meta["val"]
    tensors = [None if tensor is None else inner[tensor] for tensor in call.tensors]
    result = graph.call_function(_operator(choice), (*tensors, *call.numbers, *dataclasses.astuple(choice.config)))
    compute_meta(result)
    graph.output((result,)).meta["val"] = (result.meta["val"],)
    index = 0
    while hasattr(module, name := f"attention_{choice.kernel}_{index}"):
        index += 1
    setattr(module, name, GraphModule(torch.nn.Module(), graph))
    return name

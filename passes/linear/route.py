"""Products with quantised weights go to our kernels; on the host, and for look-ups, to their formula."""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.export.exported_program import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from etcuda.kernels.common.device import supports_pdl
from etcuda.kernels.linear.choose.configs import MatmulConfig, MatvecConfig
from etcuda.kernels.linear.choose.select import matmul_arguments, matvec_arguments
from etcuda.kernels.linear.problem import refuse
from etcuda.kernels.linear.reference import (
    int4_embedding_reference,
    int4_linear_reference,
    int8_embedding_reference,
    int8_linear_reference,
)
from etcuda.options import BackendConfig
from etcuda.passes.base import NodeError, graph_modules, graph_pass
from etcuda.passes.graph.calls import insert_call
from etcuda.passes.graph.inline_function import inline_function
from etcuda.passes.graph.meta import compute_meta, refresh_meta, tensor_of
from etcuda.passes.graph.program_constants import target_of
from etcuda.passes.linear.call import (
    EMBEDDING_BITS,
    PARTS,
    ROWS_OF,
    LinearCall,
    arguments,
    is_everywhere,
    read_linear,
)
from etcuda.passes.linear.choose import Step, may_take_tensor_cores, problem, steps
from etcuda.passes.recognize.gate import gate_nodes, inputs_of
from etcuda.target import CudaTarget

log = logging.getLogger(__name__)

aten = torch.ops.aten
_ops = torch.ops.etcuda

_LINEAR: dict[int, Callable[..., Tensor]] = {4: int4_linear_reference, 8: int8_linear_reference}
_EMBEDDING: dict[int, Callable[..., Tensor]] = {4: int4_embedding_reference, 8: int8_embedding_reference}


@graph_pass(requires=("lower_edge_ops", "bind_symbolic_inputs", "view_copy_to_view"))
def route_linear(program: ExportedProgram, config: BackendConfig) -> int:
    """Replaces every ``int4_linear``, ``int8_linear``, ``int4_embedding`` and ``int8_embedding``.

    Before: ``q, k = int4_linear(x, ...), int4_linear(x, ...)``.
    After: ``r = quantize_activation(x)``, ``q, k = int4_matvec_quantized(*r, ...), int4_matvec_quantized(*r, ...)``, or
    whatever kernels the table names for that many rows; for many, ``int4_matmul_reordered`` on ``reorder_activation(x)``.
    Where the number of rows is dynamic and the choice depends on it, calls of one input become one ``cond`` on it,
    which the host decides; a gated activation that only they read is computed in its branches, where the kernel that
    rounds it, or puts it in order, can do that too. What no kernel serves, everything on the host, and look-ups become
    their formula.
    """
    changed = 0
    for module in graph_modules(program):
        here = _route_embeddings(module)
        calls = [call for node in module.graph.nodes if (call := read_linear(node)) is not None]
        here += len(calls)
        if isinstance(config.target, CudaTarget):
            calls = _refused(calls)
            for group in _by_input(calls):
                _route(program, module, group, config.target)
        else:
            for call in calls:
                _inline_linear(call)
        if here:
            module.graph.eliminate_dead_code()
            refresh_meta(module.graph)
        changed += here
    return changed


def _route_embeddings(module: GraphModule) -> int:
    nodes = [n for n in module.graph.nodes if n.op == "call_function" and n.target in EMBEDDING_BITS]
    for node in nodes:
        given = arguments(node)
        function = _EMBEDDING[EMBEDDING_BITS[node.target]]
        tensors = [given["indices"], *(given[part] for part in PARTS)]
        _inline(node, tensors, functools.partial(_look_up, function, given["group_size"], given["dtype"]))
    return len(nodes)


def _look_up(function: Any, group_size: int, dtype: torch.dtype, *tensors: Tensor | None) -> Any:
    return function(*tensors, group_size).to(dtype)


def _inline_linear(call: LinearCall) -> None:
    call = call.now()
    function, group_size, activation_dtype = _LINEAR[call.bits], call.group_size, call.activation_dtype
    tensors = [call.x, *call.stored, call.bias]
    _inline(call.node, tensors, lambda *all_: function(*all_, group_size, activation_dtype))


def _inline(node: Node, tensors: list[Node | None], function: Any) -> None:
    """Puts the formula in the place of a call; ``function`` takes all tensors, absent ones too."""

    def of_present(*present: Tensor) -> Any:
        values = iter(present)
        return function(*(None if tensor is None else next(values) for tensor in tensors))

    inline_function(node, of_present, *(tensor for tensor in tensors if tensor is not None))


def _refused(calls: list[LinearCall]) -> list[LinearCall]:
    """Calls that kernels serve; the others become their formula."""
    served = []
    for call in calls:
        reason = refuse(problem(call))
        if reason is None:
            served.append(call)
        else:
            log.info("%s is computed by its formula: %s", call.node.name, reason)
            _inline_linear(call)
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
    first = calls[0].node
    found = steps(calls, target)
    for call in calls:
        if len(call.parts) > 1 and may_take_tensor_cores(call, target):
            raise NodeError(call.node, "a joined product would go to tensor cores; run split_joined before this pass")
    dense = [_dense(call) for call in calls]
    # A kernel that starts early reads its weight before what runs in front has ended: nothing there may write it.
    pdl = int(supports_pdl(target) and all(_is_weight(program, module, n) for call in dense for n in call.operands))
    results = _insert(module, first, dense, found, target, pdl)
    for call, result in zip(calls, results, strict=True):
        call.node.replace_all_uses_with(result)
        module.graph.erase_node(call.node)
    for step in found:
        most = "any number of" if step.most is None else f"up to {step.most}"
        for call, choice in zip(calls, step.choices, strict=True):
            log.info(
                "%s, %s rows, goes to %s %s: %s", call.node.name, most, choice.kernel, choice.config, choice.source
            )


def _is_weight(program: ExportedProgram, module: GraphModule, node: Node) -> bool:
    """Whether nothing writes a tensor while the program runs. A branch does not know what it is handed."""
    whole = node.args[0] if ROWS_OF in node.meta else node
    return module is program.graph_module and target_of(program, whole) is not None


def _dense(call: LinearCall) -> LinearCall:
    """The call on tensors whose rows follow each other in memory."""
    copies = [None if part is None else _contiguous(call.node, part) for part in (*call.stored, call.bias)]
    return LinearCall(
        call.node, call.bits, call.x, tuple(copies[:-1]), copies[-1], call.group_size, call.activation_dtype
    )


def _contiguous(before: Node, part: Node) -> Node:
    if tensor_of(part).is_contiguous():
        return part
    return insert_call(before, aten.clone.default, (part,), memory_format=torch.contiguous_format)


def _insert(
    module: GraphModule, before: Node, calls: list[LinearCall], found: list[Step], target: CudaTarget, pdl: int
) -> list[Node]:
    """The results of the calls, computed in front of ``before``."""
    if len(found) == 1:
        return _insert_kernels(before, calls, found[0], target, pdl)
    limit = found[0].most
    assert limit is not None
    graph = module.graph
    gate = gate_nodes(calls[0].x, [call.node for call in calls])
    inputs = inputs_of(gate) or [calls[0].x]
    rows = _rows(before, inputs[0])
    with graph.inserting_before(before):
        predicate = graph.call_function(operator.le, (rows, limit))
    compute_meta(predicate)
    # Operands may not alias each other: branches take whole weights, and the rows of them by themselves.
    nodes = [*inputs, *(node for call in calls for node in call.operands)]
    operands = list(dict.fromkeys(node.args[0] if ROWS_OF in node.meta else node for node in nodes))
    names = [_add_branch(module, calls, part, operands, gate, target, pdl) for part in (found[:1], found[1:])]
    with graph.inserting_before(before):
        branches = [graph.get_attr(name) for name in names]
        cond = graph.call_function(torch.ops.higher_order.cond, (predicate, *branches, tuple(operands)))
    outputs = getattr(module, names[0]).graph.output_node().args[0]
    cond.meta = {**before.meta, "val": tuple(value.meta["val"] for value in outputs)}
    results = []
    for index in range(len(calls)):
        with graph.inserting_before(before):
            result = graph.call_function(operator.getitem, (cond, index))
        result.meta = {**calls[index].node.meta, "val": cond.meta["val"][index]}
        results.append(result)
    return results


def _rows(before: Node, x: Node) -> Node | int:
    """M."""
    rows: Node | int = 1
    for dim, size in enumerate(tensor_of(x).shape[:-1]):
        factor = size if isinstance(size, int) else insert_call(before, aten.sym_size.int, (x, dim))
        if isinstance(rows, int) and (rows == 1 or isinstance(factor, int)):
            rows = factor if rows == 1 else rows * factor
            continue
        with before.graph.inserting_before(before):
            product = before.graph.call_function(operator.mul, (rows, factor))
        compute_meta(product)
        rows = product
    return rows


def _add_branch(
    module: GraphModule, calls: list[LinearCall], found: list[Step], operands: list[Any], gate: list[Node],
    target: CudaTarget, pdl: int,
) -> str:  # fmt: skip
    """A submodule that computes the calls on the operands, and the nodes of a gated activation_dtype in front of them."""
    inner = GraphModule(torch.nn.Module(), Graph())
    graph = inner.graph
    inside: dict[Node, Node] = {}
    for operand in operands:
        inside[operand] = graph.placeholder(operand.name)
        inside[operand].meta["val"] = operand.meta["val"]
    output = graph.output(())
    for part in dict.fromkeys(node for call in calls for node in call.operands if ROWS_OF in node.meta):
        whole, *rows = part.args
        inside[part] = insert_call(output, aten.slice.Tensor, (inside[whole], *rows))  # type: ignore[index]
        inside[part].meta[ROWS_OF] = part.meta[ROWS_OF]
    for node in gate:
        with graph.inserting_before(output):
            inside[node] = graph.node_copy(node, inside.__getitem__)
    moved = []
    for call in calls:
        stored = tuple(None if part is None else inside[part] for part in call.stored)
        bias = None if call.bias is None else inside[call.bias]
        moved.append(
            LinearCall(call.node, call.bits, inside[call.x], stored, bias, call.group_size, call.activation_dtype)
        )
    results = _insert(inner, output, moved, found, target, pdl)
    output.args = (tuple(results),)
    output.meta["val"] = tuple(result.meta["val"] for result in results)
    graph.eliminate_dead_code()
    inner.recompile()
    index = 0
    while hasattr(module, name := f"linear_{found[0].choices[0].kernel}_{index}"):
        index += 1
    setattr(module, name, inner)
    return name


def _insert_kernels(before: Node, calls: list[LinearCall], step: Step, target: CudaTarget, pdl: int) -> list[Node]:
    """One kernel for each call; activations that kernels take rounded are rounded once, and put in order once."""
    rounded: list[Node] = []
    reordered: dict[tuple[int, str, int], list[Node]] = {}
    results = []
    for call, choice in zip(calls, step.choices, strict=True):
        if isinstance(choice.config, MatmulConfig):
            key = _order_of(call, choice.config)
            if key not in reordered:
                bits, activation_dtype, tiled = key
                how = (bits, activation_dtype, max(_heights(calls, step, key)), tiled, pdl)
                reordered[key] = _insert_parts(before, _ops.reorder_activation.default, call.x, *how)
            results.append(_insert_matmul(before, call, choice.config, reordered[key], target, pdl))
            continue
        if choice.config.rounded and not rounded:
            rounded = _insert_parts(before, _ops.quantize_activation.default, call.x, int(supports_pdl(target)))
        results.append(_insert_matvec(before, call, choice.config, step, rounded, target, pdl))
    return results


def _order_of(call: LinearCall, config: MatmulConfig) -> tuple[int, str, int]:
    """What products must have in common to read activations in one order."""
    return call.bits, call.activation_dtype, int(config.warpgroups > 0)


def _heights(calls: list[LinearCall], step: Step, key: tuple[int, str, int]) -> list[int]:
    """Rows of the tiles of the products that take activations in one order: powers of two, the greatest serves all."""
    pairs = zip(calls, (choice.config for choice in step.choices), strict=True)
    return [
        config.block_m for call, config in pairs
        if isinstance(config, MatmulConfig) and _order_of(call, config) == key
    ]  # fmt: skip


def _insert_parts(before: Node, op: Any, *args: Any) -> list[Node]:
    """The results of a call, in front of ``before``."""
    whole = insert_call(before, op, args)
    parts = []
    for index in range(len(whole.meta["val"])):
        with before.graph.inserting_before(before):
            part = before.graph.call_function(operator.getitem, (whole, index))
        compute_meta(part)
        parts.append(part)
    return parts


def _insert_matmul(
    before: Node, call: LinearCall, config: MatmulConfig, reordered: list[Node], target: CudaTarget, pdl: int
) -> Node:
    op = getattr(_ops, f"int{call.bits}_matmul_reordered").default
    trailing = matmul_arguments(config, target.num_sms, pdl)
    return _shaped(
        before,
        call,
        insert_call(
            before, op, (*reordered, *_weight(call), tensor_of(call.x).dtype, call.activation_dtype, *trailing)
        ),
    )


def _insert_matvec(
    before: Node, call: LinearCall, config: MatvecConfig, step: Step, rounded: list[Node], target: CudaTarget,
    pdl: int,
) -> Node:  # fmt: skip
    tokens, ctas, *rest = matvec_arguments(config, step.tokens, target.num_sms, pdl)
    if not config.rounded:
        op = getattr(_ops, f"int{call.bits}_matvec").default
        return insert_call(before, op, (call.x, *_weight(call), tokens, ctas, *rest))
    op = getattr(_ops, f"int{call.bits}_matvec_quantized").default
    flat = insert_call(before, op, (*rounded, *_weight(call), tensor_of(call.x).dtype, tokens, *rest))
    return _shaped(before, call, flat)


def _weight(call: LinearCall) -> tuple[Any, ...]:
    return (*call.stored, call.bias, call.group_size)


def _shaped(before: Node, call: LinearCall, flat: Node) -> Node:
    """The result [M, N] in the leading sizes of x."""
    x = tensor_of(call.x)
    if x.dim() == 2:
        return flat
    shape = [size if isinstance(size, int) else insert_call(before, aten.sym_size.int, (call.x, dim))
             for dim, size in enumerate(x.shape[:-1])]  # fmt: skip
    return insert_call(before, aten.reshape.default, (flat, [*shape, call.n]))

"""Activations that are rounded to int8, or put in order, are so by the kernel that computes them."""

from __future__ import annotations

import logging
import math
import operator

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.kernels.activations.choose.configs import ActivationConfig
from etcuda.kernels.activations.choose.select import choose_gate, choose_norm
from etcuda.kernels.activations.problem import ActivationProblem
from etcuda.kernels.common.device import supports_pdl
from etcuda.options import BackendConfig
from etcuda.passes.base import graph_modules, graph_pass
from etcuda.passes.graph.calls import insert_call, result_of
from etcuda.passes.graph.meta import compute_meta, refresh_meta, tensor_of
from etcuda.passes.graph.program_constants import target_of
from etcuda.passes.graph.symbols import hint
from etcuda.passes.linear.call import arguments
from etcuda.passes.recognize.activation import (
    Gate,
    Norm,
    other_readers,
    recognize_gate,
    recognize_norm,
    same_rows,
)
from etcuda.target import CudaTarget

log = logging.getLogger(__name__)

aten = torch.ops.aten
_ops = torch.ops.etcuda

# Readers that ask for sizes alone.
_SIZES = frozenset({aten.sym_size.int, aten.sym_numel.default})


@graph_pass(requires=("route_linear",))
def fuse_quantize(program: ExportedProgram, config: BackendConfig) -> int:
    """Joins an RMSNorm, or a gated activation, with the rounding behind it.

    Before: ``h = x + residual``, ``y = weight * (h.float() * rsqrt(mean(h.float() ** 2) + eps)).to(h.dtype)``,
    ``q, scale, sum = quantize_activation(y)``.
    After: ``h, y, q, scale, sum = rms_norm_quantize(x, residual, weight, eps, ...)``, h and y only where they are read.
    Before: ``q, scale, sum = quantize_activation(silu(y[..., :I]) * y[..., I:])``.
    After: ``_, q, scale, sum = gate_quantize(y, None, "silu", ...)``.
    Likewise ``reorder_activation`` of a gated activation, in the order of the kernel in CUDA C++, becomes ``gate_reorder``,
    if nothing else reads the activation.
    What is rounded stays equal up to the order of sums in fp32. In a branch the whole chain must lie in it; what else
    stays by itself the log names, with the reason.
    """
    changed = 0
    for module in graph_modules(program):
        found: dict[Node, list[Node]] = {}
        for node in module.graph.nodes:
            if node.op == "call_function" and node.target is _ops.quantize_activation.default:
                found.setdefault(same_rows(node.args[0]), []).append(node)
        here = [_fuse(program, module, y, calls, config.target) for y, calls in found.items()]
        orders = [
            n for n in module.graph.nodes if n.op == "call_function" and n.target is _ops.reorder_activation.default
        ]
        here += [_fuse_order(program, module, node) for node in orders]
        if any(here):
            module.graph.eliminate_dead_code()
            refresh_meta(module.graph)
        changed += sum(here)
    return changed


def _fuse(program: ExportedProgram, module: GraphModule, y: Node, calls: list[Node], target: object) -> int:
    """Replaces the calls that round ``y``; returns how many."""
    assert isinstance(target, CudaTarget)
    names = ", ".join(call.name for call in calls)
    if y.op == "placeholder":
        log.info("%s stays by itself: %s", names, _whose(program, module, y))
        return 0
    norm, gate = recognize_norm(y), recognize_gate(y)
    if isinstance(norm, Norm):
        _fuse_norm(program, module, y, calls, norm, target)
    elif isinstance(gate, Gate):
        _fuse_gate(y, calls, gate, target)
    else:
        log.info("%s stays by itself: no norm, for %s; no gate, for %s", names, norm, gate)
        return 0
    return len(calls)


def _fuse_norm(
    program: ExportedProgram, module: GraphModule, y: Node, calls: list[Node], norm: Norm, target: CudaTarget
) -> None:
    pair = norm.addends
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    # h may have readers anywhere behind it: where it is a result, the call takes its place.
    if pair is not None and norm.weight is not None and order[norm.weight] > order[norm.h]:
        pair = None
    before = y if pair is None else norm.h
    x, residual = pair or (norm.h, None)
    choice = choose_norm(_problem(y, residual is not None), target)
    constant = norm.weight is None or (
        module is program.graph_module
        and target_of(program, norm.weight) is not None
        and tensor_of(norm.weight).is_contiguous()
    )
    pdl = int(supports_pdl(target) and constant)
    args = (x, residual, norm.weight, norm.eps, norm.weight_offset, norm.cast_first)
    fused = insert_call(before, _ops.rms_norm_quantize.default, (*args, True, True, *_trailing(choice.config, pdl)))
    _take_over(fused, 2, calls)
    keep_y = _replace(fused, 1, y, x)
    module.graph.eliminate_dead_code()
    keep_h = residual is not None and _replace(fused, 0, norm.h, x)
    fused.args = (*args, keep_h, keep_y, *_trailing(choice.config, pdl))
    compute_meta(fused)
    log.info(
        "%s: norm of %s and rounding are one kernel, %s: %s; h is %s, the norm is %s", fused.name,
        x.name if residual is None else f"{x.name} + {residual.name}", choice.config, choice.source,
        _kept(keep_h), _kept(keep_y),
    )  # fmt: skip


def _fuse_gate(y: Node, calls: list[Node], gate: Gate, target: CudaTarget) -> None:
    choice = choose_gate(_problem(y, False), target)
    args = (gate.gate, gate.up, gate.activation)
    trailing = _trailing(choice.config, int(supports_pdl(target)))
    fused = insert_call(y, _ops.gate_quantize.default, (*args, True, *trailing))
    _take_over(fused, 1, calls)
    keep_y = _replace(fused, 0, y, gate.gate)
    fused.args = (*args, keep_y, *trailing)
    compute_meta(fused)
    log.info("%s: %s of %s and rounding are one kernel, %s: %s; the product is %s", fused.name, gate.activation,
             gate.gate.name, choice.config, choice.source, _kept(keep_y))  # fmt: skip


def _fuse_order(program: ExportedProgram, module: GraphModule, call: Node) -> int:
    """Replaces a call that puts a gated activation in order; returns 1, or 0 if it stays."""
    given = arguments(call)
    y = same_rows(given["x"])
    if y.op == "placeholder":
        log.info("%s stays by itself: %s", call.name, _whose(program, module, y))
        return 0
    gate = recognize_gate(y)
    reason = gate if isinstance(gate, str) else None
    if not given["tiled"]:
        reason = "the product behind it is not the kernel in CUDA C++"
    elif reason is None and (others := other_readers(y, [call])):
        reason = f"{others[0].name} reads {y.name} too"
    if reason is not None:
        log.info("%s stays by itself: %s", call.name, reason)
        return 0
    assert isinstance(gate, Gate)
    args = (gate.gate, gate.up, gate.activation, given["activation"], given["block_m"], given["pdl"])
    fused = insert_call(call, _ops.gate_reorder.default, args)
    _take_over(fused, 0, [call])
    _read_sizes_of(y, gate.gate)
    log.info("%s: %s of %s and its order are one kernel", fused.name, gate.activation, gate.gate.name)
    return 1


def _whose(program: ExportedProgram, module: GraphModule, y: Node) -> str:
    return f"{y.name} " + ("is an input" if module is program.graph_module else "is computed outside the branch")


def _problem(y: Node, residual: bool) -> ActivationProblem:
    value = tensor_of(y)
    return ActivationProblem(
        hint(math.prod(value.shape[:-1])), int(value.shape[-1]), value.dtype.itemsize, residual
    )  # fmt: skip


def _trailing(config: ActivationConfig, pdl: int) -> tuple[int, ...]:
    return (config.blocks, config.num_warps, pdl)


def _take_over(fused: Node, first: int, calls: list[Node]) -> None:
    """Hands the parts that the calls returned over to those of ``fused`` from ``first`` on, and removes the calls."""
    for call in calls:
        for part in list(call.users):
            index = part.args[1]
            assert part.target is operator.getitem
            assert isinstance(index, int)
            part.replace_all_uses_with(result_of(fused, first + index))
            part.graph.erase_node(part)
        view = call.args[0]
        call.graph.erase_node(call)
        while isinstance(view, Node) and not view.users and same_rows(view) is not view:
            source = view.args[0]
            view.graph.erase_node(view)
            view = source


def _replace(fused: Node, index: int, node: Node, shape: Node) -> bool:
    """Puts a result of ``fused`` into the place of ``node`` where it is read; returns whether it is read.

    Readers of sizes alone read those of ``shape``, where the two are equal in them.
    """
    _read_sizes_of(node, shape)
    if not node.users:
        return False
    node.replace_all_uses_with(result_of(fused, index), delete_user_cb=lambda user: user is not fused)
    return True


def _read_sizes_of(node: Node, other: Node) -> None:
    for user in list(node.users):
        if user.target in _SIZES and _same_size(user, node, other):
            user.replace_input_with(node, other)


def _same_size(reader: Node, node: Node, other: Node) -> bool:
    """Whether a reader of sizes gets from ``other`` what it gets from ``node``."""
    sizes, others = tensor_of(node).shape, tensor_of(other).shape
    dims = reader.args[1:] if reader.target is aten.sym_size.int else range(len(sizes))
    return len(sizes) == len(others) and all(statically_known_true(sizes[dim] == others[dim]) for dim in dims)  # type: ignore[index]


def _kept(keep: bool) -> str:
    return "kept" if keep else "not kept"

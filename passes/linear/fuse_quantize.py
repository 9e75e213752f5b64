"""Activations that are quantized to int8 are quantized by the kernel that computes them."""

from __future__ import annotations

import logging
import math

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import GraphModule, Node

from etcuda.kernels.activations.choose.select import choose_gate, choose_norm
from etcuda.kernels.activations.problem import ActivationProblem
from etcuda.kernels.common.device import supports_pdl
from etcuda.options import BackendConfig
from etcuda.passes.base import graph_modules, graph_pass
from etcuda.passes.graph.calls import insert_call
from etcuda.passes.graph.dead_code import erase_dead
from etcuda.passes.graph.meta import compute_meta, refresh_meta, tensor_of
from etcuda.passes.graph.program_constants import target_of
from etcuda.passes.graph.results import replace_by_result, take_over
from etcuda.passes.recognize.gate import Gate, recognize_gate
from etcuda.passes.recognize.norm import Norm, recognize_norm
from etcuda.passes.recognize.rows import same_rows
from etcuda.target import CudaTarget
from etcuda.torch_private import hint

log = logging.getLogger(__name__)

_ops = torch.ops.etcuda


@graph_pass(requires=("route_linear",))
def fuse_quantize(program: ExportedProgram, config: BackendConfig) -> int:
    """Fuses an RMSNorm, or a gated activation, with the quantization of its result.

    Before: ``h = x + residual``, ``y = weight * (h.float() * rsqrt(mean(h.float() ** 2) + eps)).to(h.dtype)``,
    ``q, scale, sum = quantize_activation(y)``.
    After: ``h, y, q, scale, sum = rms_norm_quantize(x, residual, weight, eps, ...)``, h and y only where they are read.
    Before: ``q, scale, sum = quantize_activation(silu(y[..., :I]) * y[..., I:])``.
    After: ``_, q, scale, sum = gate_quantize(y, None, "silu", ...)``.
    Results stay equal up to the order of sums in fp32. In a branch the whole chain must lie in it; the log names what
    stays by itself, with the reason.
    """
    changed = 0
    for module in graph_modules(program):
        found: dict[Node, list[Node]] = {}
        for node in module.graph.nodes:
            if node.op == "call_function" and node.target is _ops.quantize_activation.default:
                found.setdefault(same_rows(node.args[0]), []).append(node)
        here = sum(_fuse(program, module, y, calls, config.target) for y, calls in found.items())
        if here:
            erase_dead(module.graph)
            refresh_meta(module.graph)
        changed += here
    return changed


def where_from(program: ExportedProgram, module: GraphModule, y: Node) -> str:
    """In words, why the kernel that computes a placeholder is not in this graph."""
    return f"{y.name} " + ("is an input" if module is program.graph_module else "is computed outside the branch")


def _fuse(program: ExportedProgram, module: GraphModule, y: Node, calls: list[Node], target: object) -> int:
    """Replaces the calls that quantize ``y``; returns how many."""
    assert isinstance(target, CudaTarget)
    names = ", ".join(call.name for call in calls)
    if y.op == "placeholder":
        log.info("%s stays by itself: %s", names, where_from(program, module, y))
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
    pdl = int(supports_pdl(target) and _is_constant(program, module, norm.weight))
    args = (x, residual, norm.weight, norm.eps, norm.weight_offset, norm.cast_first)
    trailing = choice.config.to_args(pdl)
    fused = insert_call(before, _ops.rms_norm_quantize.default, (*args, True, True, *trailing))
    take_over(fused, 2, calls, y)
    keep_y = replace_by_result(fused, 1, y, x)
    erase_dead(module.graph)
    keep_h = residual is not None and replace_by_result(fused, 0, norm.h, x)
    fused.args = (*args, keep_h, keep_y, *trailing)
    compute_meta(fused)
    log.info(
        "%s: norm of %s and its quantization are one kernel, %s: %s; h is %s, the norm is %s", fused.name,
        x.name if residual is None else f"{x.name} + {residual.name}", choice.config, choice.source,
        _kept(keep_h), _kept(keep_y),
    )  # fmt: skip


def _fuse_gate(y: Node, calls: list[Node], gate: Gate, target: CudaTarget) -> None:
    choice = choose_gate(_problem(y, False), target)
    args = (gate.gate, gate.up, gate.activation)
    trailing = choice.config.to_args(int(supports_pdl(target)))
    fused = insert_call(y, _ops.gate_quantize.default, (*args, True, *trailing))
    take_over(fused, 1, calls, y)
    keep_y = replace_by_result(fused, 0, y, gate.gate)
    fused.args = (*args, keep_y, *trailing)
    compute_meta(fused)
    log.info("%s: %s of %s and its quantization are one kernel, %s: %s; the product is %s", fused.name, gate.activation,
             gate.gate.name, choice.config, choice.source, _kept(keep_y))  # fmt: skip


def _is_constant(program: ExportedProgram, module: GraphModule, weight: Node | None) -> bool:
    """Whether nothing writes the weight while the program runs, so that the kernel may read it before others end."""
    if weight is None:
        return True
    known = module is program.graph_module and target_of(program, weight) is not None
    return known and tensor_of(weight).is_contiguous()


def _problem(y: Node, residual: bool) -> ActivationProblem:
    *leading, k = tensor_of(y).shape
    return ActivationProblem(hint(math.prod(leading)), int(k), tensor_of(y).dtype.itemsize, residual)


def _kept(keep: bool) -> str:
    return "kept" if keep else "not kept"

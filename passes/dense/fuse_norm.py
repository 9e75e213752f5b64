"""RMSNorms in front of products of few tokens go to a kernel that is launched early."""

from __future__ import annotations

import logging
import math

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.kernels.activations.choose.select import choose_norm
from etcuda.kernels.activations.problem import ActivationProblem, refuse
from etcuda.kernels.common.device import supports_pdl
from etcuda.options import BackendConfig
from etcuda.passes.base import graph_pass
from etcuda.passes.graph.calls import insert_call
from etcuda.passes.graph.dead_code import erase_dead
from etcuda.passes.graph.meta import compute_meta, refresh_meta, tensor_of
from etcuda.passes.graph.program_constants import target_of
from etcuda.passes.graph.results import replace_by_result
from etcuda.passes.recognize.norm import Norm, recognize_norm
from etcuda.passes.recognize.rows import same_rows
from etcuda.target import CudaTarget
from etcuda.torch_private import hint

log = logging.getLogger(__name__)

_ops = torch.ops.etcuda


@graph_pass(requires=("route_dense",))
def fuse_norm(program: ExportedProgram, config: BackendConfig) -> int:
    """Replaces the norm that a ``dense_matvec`` reads, and the sum in front of it, by one kernel.

    Before: ``h = x + residual``, ``y = weight * (h.float() * rsqrt(mean(h.float() ** 2) + eps)).to(h.dtype)``,
    ``dense_matvec(y, ...)``.
    After: ``h, y = rms_norm(x, residual, weight, eps, ...)``, h only where it is read.
    At few tokens such a kernel takes the time of a launch, which this one shares with the kernel in front of it.
    """
    target = config.target
    if not isinstance(target, CudaTarget):
        return 0
    found: dict[Node, list[Node]] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target is _ops.dense_matvec.default:
            found.setdefault(same_rows(node.args[0]), []).append(node)
    changed = sum(_fuse(program, y, target) for y in found if y.op == "call_function")
    if changed:
        erase_dead(program.graph)
        refresh_meta(program.graph)
    return changed


def _fuse(program: ExportedProgram, y: Node, target: CudaTarget) -> int:
    """Replaces one norm; returns 1, or 0 if ``y`` is none that the kernel serves."""
    norm = recognize_norm(y)
    if isinstance(norm, str):
        log.info("%s is read by a product and is no norm: %s", y.name, norm)
        return 0
    pair = norm.addends
    *leading, k = tensor_of(y).shape
    problem = ActivationProblem(hint(math.prod(leading)), int(k), tensor_of(y).dtype.itemsize, pair is not None)
    reason = refuse(problem)
    if reason is not None:
        log.info("%s stays as it is: %s", y.name, reason)
        return 0
    order = {node: index for index, node in enumerate(program.graph.nodes)}
    # h may have readers anywhere behind it: where it is a result, the call takes its place.
    if pair is not None and norm.weight is not None and order[norm.weight] > order[norm.h]:
        pair = None
    x, residual = pair or (norm.h, None)
    choice = choose_norm(problem, target)
    trailing = choice.config.to_args(int(supports_pdl(target) and _is_constant(program, norm)))
    args = (x, residual, norm.weight, norm.eps, norm.weight_offset, norm.cast_first)
    fused = insert_call(y if pair is None else norm.h, _ops.rms_norm.default, (*args, True, *trailing))
    replace_by_result(fused, 1, y, x)
    erase_dead(program.graph)
    keep_h = residual is not None and replace_by_result(fused, 0, norm.h, x)
    fused.args = (*args, keep_h, *trailing)
    compute_meta(fused)
    log.info("%s: the norm of %s is a kernel, %s: %s", fused.name, x.name, choice.config, choice.source)
    return 1


def _is_constant(program: ExportedProgram, norm: Norm) -> bool:
    """Whether nothing writes the weight while the program runs, so that the kernel may read it before others end."""
    if norm.weight is None:
        return True
    return target_of(program, norm.weight) is not None and tensor_of(norm.weight).is_contiguous()

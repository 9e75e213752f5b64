"""Batch norms behind convolutions become part of their weights."""

from __future__ import annotations

import logging
import operator
from typing import Any

import torch
from torch import Tensor
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.options import BackendConfig
from etcuda.passes.base import graph_pass
from etcuda.passes.convolution.weights import Norm, ScaledBias, ScaledFilters, whole
from etcuda.passes.graph.calls import arguments, insert_call
from etcuda.passes.graph.meta import refresh_meta, tensor_of
from etcuda.passes.graph.program_constants import forget_unused, insert_constant, made_of, target_of, value_of
from etcuda.passes.graph.recipes import stand_in

log = logging.getLogger(__name__)
aten = torch.ops.aten

_NORM = aten._native_batch_norm_legit_no_training.default
_PARTS = ("weight", "bias", "running_mean", "running_var")


@graph_pass(requires=("lower_edge_ops", "view_copy_to_view", "apply_decompositions"))
def fold_batch_norm(program: ExportedProgram, config: BackendConfig) -> int:
    """Folds a batch norm of fixed statistics into the convolution in front of it, for the GPU.

    Before: ``batch_norm(convolution(x, w, b), weight, bias, mean, var)``.
    After: ``convolution(x, w * s, (b - mean) * s + bias)``, ``s = weight / sqrt(var + eps)``, made when stored.
    The results differ by a rounding of the weights. A norm stays whose statistics are no constants, or whose factors
    would bring a weight beyond its dtype.
    """
    if config.is_host or not config.options.cudnn:
        return 0
    changed = 0
    unused: dict[Node, None] = {}
    for node in list(program.graph.nodes):
        if node.op != "call_function" or node.target is not _NORM:
            continue
        reason = _fold(program, node, unused)
        if reason is None:
            changed += 1
        else:
            log.info("%s stays: %s", node.name, reason)
    if changed:
        forget_unused(program, list(unused))
        refresh_meta(program.graph)
    return changed


def _fold(program: ExportedProgram, node: Node, unused: dict[Node, None]) -> str | None:
    """Folds a norm; returns why not, or ``None``."""
    given = arguments(node)
    conv = given["input"]
    if not isinstance(conv, Node) or conv.target is not aten.convolution.default:
        return "there is no convolution in front of it"
    if len(conv.users) > 1:
        return "the convolution's result is used elsewhere too"
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users):
        return "its statistics are used"
    convolution = arguments(conv)
    if convolution["transposed"]:
        return "the convolution is transposed"
    nodes = {"filters": convolution["weight"], "conv_bias": convolution["bias"]} | {p: given[p] for p in _PARTS}
    values: dict[str, Tensor | None] = {}
    targets: dict[str, str] = {}
    for name, source in nodes.items():
        target = None if source is None else target_of(program, source)
        if source is not None and target is None:
            return f"its {name.replace('_', ' ')} is no constant"
        values[name] = None if target is None else value_of(program, target)
        if target is not None:
            targets[name] = target
    filters, mean, var = values["filters"], values["running_mean"], values["running_var"]
    if filters is None or mean is None or var is None:
        return "it has no statistics"
    norm = Norm(values["weight"], values["bias"], mean, var, float(given["eps"]))
    largest = _largest(filters, norm)
    if not largest <= torch.finfo(filters.dtype).max:
        return f"a weight would become {largest:g}, beyond {filters.dtype}"
    bias = values["conv_bias"]
    key = ("batch norm", norm.eps, norm.weight is None, norm.bias is None, bias is None)
    parts = [filters, *norm.tensors, *(() if bias is None else (bias,))]
    scaled = made_of(parts, (*key, "filters"), lambda: stand_in(ScaledFilters(filters, norm)))
    shifted = made_of(parts, (*key, "bias"), lambda: stand_in(ScaledBias(bias, norm, filters.dtype)))
    before = nodes["filters"]
    # By the norm's name: filters may be shared by convolutions with norms of their own.
    name = f"{targets['filters']}_with_{targets['running_mean']}"
    new_filters = insert_constant(program, before, name, scaled)
    new_bias = insert_constant(program, before, f"{name}_bias", shifted)
    others: list[Any] = list(conv.args[3:])
    folded = insert_call(conv, aten.convolution.default, (conv.args[0], new_filters, new_bias, *others))
    for user in list(node.users):
        user.replace_all_uses_with(folded)
        program.graph.erase_node(user)
    for each in (node, conv):
        program.graph.erase_node(each)
    unused.update({source: None for source in nodes.values() if isinstance(source, Node)})
    assert tensor_of(folded).dtype == filters.dtype
    return None


def _largest(filters: Tensor, norm: Norm) -> float:
    largest = whole(filters).flatten(1).abs().amax(1).double()
    return float((largest * norm.scale().abs()).max())

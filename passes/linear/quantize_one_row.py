"""Products of one row take rounded activations where the kernel in front of them can round, and that is faster."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.kernels.activations.choose.select import quantize_us
from etcuda.kernels.activations.problem import ActivationProblem
from etcuda.kernels.linear.choose import table
from etcuda.kernels.linear.choose.configs import MatvecConfig
from etcuda.kernels.linear.choose.measured import best_matvec, quantizing_before_pays
from etcuda.kernels.linear.choose.select import matvec_arguments
from etcuda.kernels.linear.problem import LinearProblem
from etcuda.options import BackendConfig
from etcuda.passes.base import graph_modules, graph_pass
from etcuda.passes.graph.calls import insert_call, result_of
from etcuda.passes.graph.meta import refresh_meta, tensor_of
from etcuda.passes.linear.call import PARTS, LinearCall, arguments
from etcuda.passes.linear.choose import problem, rows_of
from etcuda.passes.recognize.activation import other_readers, recognize_gate, recognize_norm, same_rows
from etcuda.target import CudaTarget

log = logging.getLogger(__name__)

aten = torch.ops.aten
_ops = torch.ops.etcuda

_MATVECS = (_ops.int4_matvec.default, _ops.int8_matvec.default)
_ROUNDED = {4: _ops.int4_matvec_quantized.default, 8: _ops.int8_matvec_quantized.default}


@graph_pass(requires=("route_linear",))
def quantize_one_row(program: ExportedProgram, config: BackendConfig) -> int:
    """Puts the rounding in front of products of one row, where a norm or a gated activation then rounds for nothing.

    Before: ``int4_matvec(y, ...)``, y a norm or a gated activation that quantised products of one row alone read.
    After: ``int4_matvec_quantized(*quantize_activation(y), ...)``, which ``fuse_quantize`` joins with y.
    The tables say what it costs: a product that was measured with a rounding of its own costs as much less as that
    rounding alone was measured to cost. Where a table is missing everything stays.
    """
    target = config.target
    changed = 0
    if not isinstance(target, CudaTarget):
        return changed
    for module in graph_modules(program):
        found: dict[Node, list[Node]] = {}
        for node in module.graph.nodes:
            if node.target in _MATVECS:
                found.setdefault(same_rows(node.args[0]), []).append(node)
        here = 0
        for y, nodes in found.items():
            if not _recognized(y):
                continue
            plan = _plan(y, [_read(node) for node in nodes], target)
            if isinstance(plan, str):
                log.info("%s rounds by itself: %s", ", ".join(node.name for node in nodes), plan)
                continue
            _rewrite(nodes, plan, target)
            here += len(nodes)
        if here:
            module.graph.eliminate_dead_code()
            refresh_meta(module.graph)
        changed += here
    return changed


def _recognized(y: Node) -> bool:
    return not isinstance(recognize_norm(y), str) or not isinstance(recognize_gate(y), str)


def _read(node: Node) -> LinearCall:
    given = arguments(node)
    stored = tuple(given[part] for part in PARTS)
    bits = 4 if node.target is _ops.int4_matvec.default else 8
    return LinearCall(node, bits, given["x"], stored, given["bias"], given["group_size"], "int8")


def _plan(y: Node, calls: list[LinearCall], target: CudaTarget) -> list[MatvecConfig] | str:
    """The configurations of the products on rounded activations, or why they round by themselves."""
    problems = [problem(call) for call in calls]
    rows = rows_of(calls[0])
    if not statically_known_true(rows == 1):
        return f"expected one row, got {rows}"
    others = other_readers(y, [call.node for call in calls])
    if others:
        return f"{others[0].name} reads {y.name} too"
    first = problems[0]
    rounding = quantize_us(ActivationProblem(1, first.k, first.itemsize), target)
    if rounding is None:
        return f"there is no table of what rounding costs on {target.arch}; `etcuda tune rounding` writes it"
    configs = []
    for each in problems:
        config = _after_rounding(each, rounding, target)
        if isinstance(config, str):
            return config
        configs.append(config)
    log.info("%s: rounded before, which takes %.2f us alone", y.name, rounding)
    return configs


def _after_rounding(each: LinearProblem, rounding: float, target: CudaTarget) -> MatvecConfig | str:
    """The configuration on rounded activations, or why it does not pay. Neither the order of its sums nor the reason
    depends on N, so that a joined product and its parts are treated alike."""
    measured = table.load(each.bits, target.arch)
    pays = None if measured is None else quantizing_before_pays(measured, each, 1, rounding)
    best = None if measured is None else best_matvec(measured, each, 1, rounded=1)
    if pays is None or best is None:
        return f"products of one row were not measured on {target.arch} with a rounding in front and without"
    if not pays:
        return f"with K = {each.k} they are faster by themselves, though a rounding takes {rounding:.2f} us"
    return best[0]


def _rewrite(nodes: list[Node], configs: list[MatvecConfig], target: CudaTarget) -> None:
    first = nodes[0]
    pdl = arguments(first)["pdl"]
    whole = insert_call(first, _ops.quantize_activation.default, (first.args[0], pdl))
    parts = [result_of(whole, index) for index in range(3)]
    for node, config in zip(nodes, configs, strict=True):
        call, given = _read(node), arguments(node)
        x = tensor_of(call.x)
        tokens, _, *rest = matvec_arguments(config, given["tokens"], target.num_sms, given["pdl"])
        weight: list[Any] = [*call.stored, call.bias, call.group_size]
        result = insert_call(node, _ROUNDED[call.bits], (*parts, *weight, x.dtype, tokens, *rest))
        if x.dim() != 2:
            # One row: the leading sizes are all 1.
            result = insert_call(node, aten.reshape.default, (result, [*(1 for _ in x.shape[:-1]), call.n]))
        node.replace_all_uses_with(result)
        node.graph.erase_node(node)

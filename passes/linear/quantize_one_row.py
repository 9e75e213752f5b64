"""Products of one token take quantized activations where the kernel in front can quantize them and that is faster."""

from __future__ import annotations

import logging

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.kernels.activations.choose.select import early_us, quantize_us
from etcuda.kernels.activations.problem import ActivationProblem
from etcuda.kernels.linear.choose import table
from etcuda.kernels.linear.choose.configs import MatvecConfig
from etcuda.kernels.linear.choose.measured import best_matvec, quantizing_before_pays
from etcuda.kernels.linear.problem import LinearProblem
from etcuda.options import BackendConfig
from etcuda.passes.base import graph_modules, graph_pass
from etcuda.passes.graph.calls import arguments, insert_call, result_of
from etcuda.passes.graph.dead_code import erase_dead
from etcuda.passes.graph.meta import refresh_meta, tensor_of
from etcuda.passes.linear.call import LinearCall, read_matvec
from etcuda.passes.linear.choose import num_tokens, problem
from etcuda.passes.recognize.gate import recognize_gate
from etcuda.passes.recognize.norm import recognize_norm
from etcuda.passes.recognize.rows import other_readers, same_rows
from etcuda.target import CudaTarget

log = logging.getLogger(__name__)

aten = torch.ops.aten
_ops = torch.ops.etcuda


@graph_pass(requires=("route_linear",))
def quantize_one_row(program: ExportedProgram, config: BackendConfig) -> int:
    """Quantizes in front of products of one token, where a norm or a gated activation then quantizes at no cost.

    Before: ``int4_matvec(y, ...)``, y a norm or a gated activation that quantised products of one token alone read.
    After: ``int4_matvec_quantized(*quantize_activation(y), ...)``, which ``fuse_quantize`` fuses with y.
    The tables say what it costs: a product that was measured with a quantization of its own costs as much less as that
    quantization alone was measured to cost. What computes y is launched early where it quantizes too, and not else, for
    Inductor's kernels are not. Where a table is missing everything stays.
    """
    target = config.target
    changed = 0
    if not isinstance(target, CudaTarget):
        return changed
    for module in graph_modules(program):
        found: dict[Node, list[LinearCall]] = {}
        for node in module.graph.nodes:
            call = read_matvec(node)
            if call is not None:
                found.setdefault(same_rows(call.x), []).append(call)
        here = 0
        for y, calls in found.items():
            if not _can_quantize(y):
                continue
            configs = _choose(y, calls, target)
            if isinstance(configs, str):
                log.info("%s quantize by themselves: %s", ", ".join(call.node.name for call in calls), configs)
                continue
            _rewrite(calls, configs, target)
            here += len(calls)
        if here:
            erase_dead(module.graph)
            refresh_meta(module.graph)
        changed += here
    return changed


def _can_quantize(y: Node) -> bool:
    """Whether there is a kernel that computes ``y`` and quantizes it."""
    return not isinstance(recognize_norm(y), str) or not isinstance(recognize_gate(y), str)


def _choose(y: Node, calls: list[LinearCall], target: CudaTarget) -> list[MatvecConfig] | str:
    """The configurations of the products on quantized activations, or why they quantize by themselves."""
    problems = [problem(call) for call in calls]
    m = num_tokens(calls[0])
    if not statically_known_true(m == 1):
        return f"expected one token, got {m}"
    others = other_readers(y, [call.node for call in calls])
    if others:
        return f"{others[0].name} reads {y.name} too"
    first = problems[0]
    row = ActivationProblem(1, first.k, first.itemsize)
    us, front_us = quantize_us(row, target), early_us(row, target)
    if us is None:
        return f"there is no table of what quantizing costs on {target.arch}; `etcuda tune activations` writes it"
    configs = []
    for each in problems:
        config = _choose_one(each, us, front_us, target)
        if isinstance(config, str):
            return config
        configs.append(config)
    log.info("%s: quantized before, which takes %.2f us alone", y.name, us)
    return configs


def _choose_one(each: LinearProblem, us: float, front_us: float, target: CudaTarget) -> MatvecConfig | str:
    """The configuration on quantized activations, or why it does not pay.

    Quantizing alone takes ``us``. A norm or a gate that quantizes is a kernel of ours, launched early; another one is
    Inductor's, which takes ``front_us`` more.
    Neither the split of its sums nor the reason depends on N, so that a joined product and its parts are treated alike.
    """
    measured = table.load(each.format_name, target.arch)
    pays = None if measured is None else quantizing_before_pays(measured, each, 1, us, front_us)
    best = None if measured is None else best_matvec(measured, each, 1, quantized=1)
    if pays is None or best is None:
        return f"products of one token were not measured on {target.arch} with a quantization in front and without"
    if not pays:
        return f"with K = {each.k} they are faster by themselves, though quantizing takes {us:.2f} us"
    return best[0]


def _rewrite(calls: list[LinearCall], configs: list[MatvecConfig], target: CudaTarget) -> None:
    first = calls[0].node
    quantized = insert_call(first, _ops.quantize_activation.default, (calls[0].x, arguments(first)["pdl"]))
    results = [result_of(quantized, index) for index in range(3)]
    for call, config in zip(calls, configs, strict=True):
        node, given = call.node, arguments(call.node)
        x = tensor_of(call.x)
        trailing = config.launch(given["tokens"], target.num_sms, given["pdl"]).to_args()
        op = call.weight_format.matvec_quantized_op
        result = insert_call(node, op, (*results, *call.weight, x.dtype, *trailing))
        if x.dim() != 2:
            # One token: the leading sizes are all 1.
            result = insert_call(node, aten.reshape.default, (result, [*(1 for _ in x.shape[:-1]), call.n]))
        node.replace_all_uses_with(result)
        node.graph.erase_node(node)

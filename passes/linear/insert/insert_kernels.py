"""One kernel for each of several products of one input; what it reads, quantized or reordered, is computed once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.fx import Node

from etcuda.kernels.common.device import supports_pdl
from etcuda.kernels.linear.choose.configs import MatmulConfig, MatvecConfig
from etcuda.passes.graph.calls import insert_call, insert_results
from etcuda.passes.graph.meta import tensor_of
from etcuda.passes.linear.call import LinearCall
from etcuda.passes.linear.choose import Step
from etcuda.target import CudaTarget

aten = torch.ops.aten
_ops = torch.ops.etcuda


class Reordering(NamedTuple):
    """What products must have in common to read activations that were reordered once."""

    bits: int
    activation_dtype: str
    tiled: int  # 1 for the kernel in CUDA C++


def insert_kernels(before: Node, calls: list[LinearCall], step: Step, target: CudaTarget, pdl: int) -> list[Node]:
    """Inserts the kernels of a step in front of ``before``; returns a result for each call.

    Args:
        before: a node of the graph.
        calls: calls of one ``x``, their operands in this graph.
        step: a kernel for each of them.
        target: the GPU.
        pdl: 1 to launch kernels while those in front of them run, which must not write a weight.
    """
    quantized: list[Node] = []
    reordered: dict[Reordering, list[Node]] = {}
    results = []
    for call, choice in zip(calls, step.choices, strict=True):
        if isinstance(choice.config, MatmulConfig):
            key = _reordering(call, choice.config)
            if key not in reordered:
                how = (key.bits, key.activation_dtype, _tile_height(calls, step, key), key.tiled, pdl)
                reordered[key] = insert_results(before, _ops.reorder_activation.default, (call.x, *how))
            results.append(_insert_matmul(before, call, choice.config, reordered[key], target, pdl))
            continue
        if choice.config.quantized and not quantized:
            # It reads no weight, so that it may start early whatever ``pdl`` is.
            early = int(supports_pdl(target))
            quantized = insert_results(before, _ops.quantize_activation.default, (call.x, early))
        results.append(_insert_matvec(before, call, choice.config, step, quantized, target, pdl))
    return results


def _reordering(call: LinearCall, config: MatmulConfig) -> Reordering:
    return Reordering(call.weight_format.bits, call.activation_dtype, int(config.warpgroups > 0))


def _tile_height(calls: list[LinearCall], step: Step, key: Reordering) -> int:
    """Rows of the highest tile of the products that read the same; heights are powers of two, so that it serves all."""
    pairs = zip(calls, (choice.config for choice in step.choices), strict=True)
    return max(
        config.block_m
        for call, config in pairs
        if isinstance(config, MatmulConfig) and _reordering(call, config) == key
    )


def _insert_matmul(
    before: Node, call: LinearCall, config: MatmulConfig, reordered: list[Node], target: CudaTarget, pdl: int
) -> Node:
    op, dtype = call.weight_format.matmul_reordered_op, tensor_of(call.x).dtype
    trailing = config.launch(target.num_sms, pdl).to_args()
    flat = insert_call(before, op, (*reordered, *call.weight, dtype, call.activation_dtype, *trailing))
    return _with_leading_sizes(before, call, flat)


def _insert_matvec(
    before: Node,
    call: LinearCall,
    config: MatvecConfig,
    step: Step,
    quantized: list[Node],
    target: CudaTarget,
    pdl: int,
) -> Node:
    trailing = config.launch(step.tokens, target.num_sms, pdl).to_args()
    if not config.quantized:
        return insert_call(before, call.weight_format.matvec_op, (call.x, *call.weight, *trailing))
    op, dtype = call.weight_format.matvec_quantized_op, tensor_of(call.x).dtype
    flat = insert_call(before, op, (*quantized, *call.weight, dtype, *trailing))
    return _with_leading_sizes(before, call, flat)


def _with_leading_sizes(before: Node, call: LinearCall, flat: Node) -> Node:
    """The result [M, N] as [..., N]."""
    x = tensor_of(call.x)
    if x.dim() == 2:
        return flat
    shape = [size if isinstance(size, int) else insert_call(before, aten.sym_size.int, (call.x, dim))
             for dim, size in enumerate(x.shape[:-1])]  # fmt: skip
    return insert_call(before, aten.reshape.default, (flat, [*shape, call.n]))

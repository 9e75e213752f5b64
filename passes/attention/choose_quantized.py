"""Attention over coded caches gets its configuration for the GPU of the export."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.kernels.common.registry import find
from etcuda.kernels.quantized_cache.configs import choose
from etcuda.options import BackendConfig
from etcuda.passes.base import graph_modules, graph_pass
from etcuda.passes.graph.calls import arguments
from etcuda.target import CudaTarget

log = logging.getLogger(__name__)


@graph_pass(requires=("lower_edge_ops", "bind_symbolic_inputs", "inline_scalar_constants", "view_copy_to_view"))
def choose_quantized_attention(program: ExportedProgram, config: BackendConfig) -> int:
    """Chooses tiles and the number of splits of every call of ``etcuda.quantized_attention``.

    Before: ``quantized_attention(q, k, k_scale, v, v_scale, ..., "tq4", 0.0625)``, whose configuration is one that any
    GPU takes. After: the same with ``block_m=16, block_n=64, num_warps=4, num_stages=3, num_splits=16``.
    """
    if not isinstance(config.target, CudaTarget):
        return 0
    op = torch.ops.etcuda.quantized_attention.default
    changed = 0
    for module in graph_modules(program):
        for node in module.graph.nodes:
            if node.op != "call_function" or node.target is not op:
                continue
            given = arguments(node)
            values = {name: _value(each) for name, each in given.items()}
            chosen = choose(find("etcuda::quantized_attention").problem_of(values), config.target)
            node.args = tuple((given | vars(chosen)).values())
            node.kwargs = {}
            log.info("%s has %s", node.name, chosen)
            changed += 1
    return changed


def _value(argument: object) -> object:
    """The stand-in of a node's result; anything else as it is."""
    if not isinstance(argument, Node):
        return argument
    value: Tensor = argument.meta["val"]
    return value

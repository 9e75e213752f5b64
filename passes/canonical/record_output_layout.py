"""Remembers the memory order of each output before anything is rewritten."""

from __future__ import annotations

import torch
from torch.export.exported_program import ExportedProgram

from etcuda.options import BackendConfig
from etcuda.passes.base import graph_pass
from etcuda.torch_private import hint

OUTPUT_DIM_ORDERS = "etcuda_output_dim_orders"


@graph_pass()
def record_output_layout(program: ExportedProgram, config: BackendConfig) -> int:
    """Writes ``meta["etcuda_output_dim_orders"]`` on the output node: a dim order per output, ``None`` for numbers.

    ExecuTorch plans memory for the outputs as the program says before the passes; later passes change strides.
    """
    output = program.graph.output_node()
    values = [getattr(arg, "meta", {}).get("val") for arg in output.args[0]]
    output.meta[OUTPUT_DIM_ORDERS] = [dim_order(v) if isinstance(v, torch.Tensor) else None for v in values]
    return 0


def dim_order(tensor: torch.Tensor) -> tuple[int, ...]:
    """Dimensions of a tensor from the outermost in memory to the innermost, equal strides in index order.

    A dimension of size one or zero takes no part in the order in memory: a tensor that is contiguous or
    channels_last is given that order whatever its other strides.
    """
    order = tuple(range(tensor.dim()))
    if tensor.is_contiguous():
        return order
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return (0, 2, 3, 1)
    if tensor.dim() == 5 and tensor.is_contiguous(memory_format=torch.channels_last_3d):
        return (0, 2, 3, 4, 1)
    strides = [hint(stride) for stride in tensor.stride()]
    return tuple(sorted(order, key=lambda d: -strides[d]))

"""Where the time of experts of many tokens goes: each kernel of the CUDA C++ path by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.experts.cells import FEW, Cell
from benchmarks.experts.run import make_weights
from etcuda.kernels.activations.reorder_launch import reorder
from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.common.timing import Timer
from etcuda.kernels.experts import launch
from etcuda.kernels.experts.configs import HopperLaunch
from etcuda.kernels.experts.hopper import grouped
from etcuda.kernels.experts.matrices import Matrices

_REPETITIONS = 9


def print_stages(cells: Sequence[Cell]) -> None:
    """Prints microseconds of each stage of each cell that the kernel serves, serialized, in a CUDA graph."""
    timer, how = Timer(), HopperLaunch(LocalDevice.current().num_sms, 0)
    for cell in cells:
        problem = cell.model.problem(cell.tokens, cell.weights)
        if cell.tokens in FEW or grouped.refuse(problem, torch.bfloat16) is not None:
            continue
        weights = make_weights(cell.model, cell.weights)
        gate_up, down = _matrices(weights[:6], problem.group_size), _matrices(weights[6:], problem.group_size)
        for name, call in _stages(cell, gate_up, down, how).items():
            call(0)  # Compiles it.
            times = timer.graph_us(call, 2, _REPETITIONS)
            print(f"{cell.model.name}, {cell.tokens} tokens: {name}: {times.median_us:.1f} us", flush=True)
        weights.clear()


def _matrices(stored: list[Tensor | None], group_size: int) -> Matrices:
    weight, scale, zero, scale_step, zero_step, bias = stored
    assert weight is not None
    return Matrices.of(weight, scale, zero, scale_step, zero_step, bias, group_size)


def _stages(cell: Cell, gate_up: Matrices, down: Matrices, how: HopperLaunch) -> dict[str, Callable[[int], object]]:
    model = cell.model
    x = torch.randn(cell.tokens, model.hidden, dtype=torch.bfloat16, device="cuda")
    indices = torch.rand(cell.tokens, model.experts, device="cuda").topk(model.top_k).indices
    routing = torch.softmax(torch.randn(cell.tokens, model.top_k, device="cuda"), 1)
    rows = cell.tokens * model.top_k
    order, tiles = launch.plan(x, indices, model.experts, grouped.BLOCK_M, 0)
    reordered, _, _ = reorder(4, x, "int8", grouped.ROWS, 1, 0)
    between = torch.randn(-(-rows // grouped.ROWS) * grouped.ROWS, model.width, device="cuda").to(torch.bfloat16)
    products = torch.empty(rows, model.hidden, dtype=torch.bfloat16, device="cuda")

    def multiply(source: Tensor, weights: Matrices, out: Tensor, n: int, gate: str) -> None:
        launch.product_hopper(source, order, tiles, weights, out, n, gate, model.top_k, how)

    return {
        "sorting": lambda _: launch.plan(x, indices, model.experts, grouped.BLOCK_M, 0),
        "reordering": lambda _: reorder(4, x, "int8", grouped.ROWS, 1, 0),
        "gate and up": lambda _: multiply(reordered, gate_up, between, model.width, "silu"),
        "down": lambda _: multiply(between, down, products, model.hidden, ""),
        "sum": lambda _: launch.combine(products, routing, x, 0),
    }

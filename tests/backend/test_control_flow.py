"""Loops, scans and maps with weights inside are compiled in the delegate, and compute what Python's loops do."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor, nn
from torch._higher_order_ops.map import map as map_rows
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.export import Dim, export

import etcuda.runtime
from etcuda import CudaPartitioner, partition_report, save_program
from tests.partitioner.tagging import left

STEPS = 3


class Loops(nn.Module):
    """Weights that require gradients, as a model has them by default."""

    def __init__(self) -> None:
        super().__init__()
        self.repeated, self.mapped, self.cell, self.chosen = (nn.Linear(8, 8) for _ in range(4))

    def step(self, state: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.tanh(self.cell(state) + row)
        return state, state * 2

    def forward(self, x: Tensor, count: Tensor) -> tuple[Tensor, ...]:
        def choose(y: Tensor) -> Tensor:
            return torch.cond(y.sum() > 0, lambda y: self.chosen(y), lambda y: y - 1, (y,))

        last, looped = while_loop(lambda i, y: i < STEPS, lambda i, y: (i + 1, self.repeated(y)), (count, x))
        # Results that share memory are copied, for scan takes none.
        state, states = scan(lambda s, r: tuple(t.clone() for t in self.step(s, r)), x[0] * 0, x)
        mapped = map_rows(lambda row, scale: self.mapped(row[None])[0] * scale, x, x[0].cos())
        return last + 0, looped * 1, state, states, mapped, choose(x)

    def expected(self, x: Tensor, count: Tensor) -> tuple[Tensor, ...]:
        looped = x
        for _ in range(int(count), STEPS):
            looped = self.repeated(looped)
        state, states = torch.zeros_like(x[0]), []
        for row in x:
            state, seen = self.step(state, row)
            states.append(seen)
        chosen = self.chosen(x) if x.sum() > 0 else x - 1
        return torch.tensor(STEPS), looped, state, torch.stack(states), self.mapped(x) * x[0].cos(), chosen


def _program(model: Loops) -> Any:
    rows = Dim("rows", min=2, max=32)
    return export(model, (torch.randn(5, 8), torch.tensor(0)), dynamic_shapes=({0: rows}, None))


def test_on_the_host(tmp_path: pathlib.Path) -> None:
    runtime = pytest.importorskip("executorch.runtime")
    assert etcuda.runtime.is_registered()
    torch.manual_seed(0)
    model = Loops()
    program = _program(model)
    assert partition_report(program, "host").refusals == ()
    lowered = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner("host")])
    assert left(lowered)["executorch_call_delegate"] == 1
    save_program(lowered.to_executorch(), tmp_path / "loops.pte")
    method = runtime.Runtime.get().load_program(tmp_path / "loops.pte").load_method("forward")
    for rows, count, sign in ((5, 0, 1), (17, 1, -1), (3, 2, 1)):
        x = torch.rand(rows, 8) * sign
        with torch.no_grad():
            expected = model.expected(x, torch.tensor(count))
        got = tuple(method.execute([x, torch.tensor(count)]))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_for_a_gpu() -> None:
    lowered = to_edge_transform_and_lower(_program(Loops()), partitioner=[CudaPartitioner("sm_90")])
    assert left(lowered)["executorch_call_delegate"] == 1

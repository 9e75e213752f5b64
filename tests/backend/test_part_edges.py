"""Values that go from one part to another, in a graph that is compiled as one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import export

from etcuda.backend.inductor import capture
from etcuda.backend.worker.move import move_to_device
from etcuda.kernels.common.part_edge import part_edge


class Chain(nn.Module):
    def __init__(self, edges: list[bool]) -> None:
        super().__init__()
        self.edges = edges

    def forward(self, x: Tensor) -> Tensor:
        y = (x + 1) * 3
        for leaves in self.edges:
            y = part_edge(y, leaves)
        return y.sin() - x


def generated(edges: list[bool]) -> str:
    program = export(Chain(edges), (torch.ones(64, dtype=torch.bfloat16),)).run_decompositions({})
    moved = move_to_device(program, torch.device("cpu"), {})
    return capture.generate(moved.module, moved.inputs, "host", False, lambda *_: None).kernels


def test_an_edge_generates_nothing_and_ends_a_kernel() -> None:
    whole, kept, parted = (generated(edges) for edges in ([], [False], [False, True]))
    assert [text.count('extern "C"') for text in (whole, kept, parted)] == [1, 1, 2]
    # The value goes through memory, in its own dtype.
    assert [text.count(".store(") for text in (whole, kept, parted)] == [1, 1, 2]
    assert "convert<at::BFloat16" in parted.split('extern "C"')[1]


@pytest.mark.parametrize("leaves", [False, True])
def test_eager_it_is_a_copy(leaves: bool) -> None:
    x = torch.randn(3, 4).T
    y = part_edge(x, leaves)
    assert torch.equal(x, y)
    assert (y.stride(), y.dtype) == (x.stride(), x.dtype)
    assert y.data_ptr() != x.data_ptr()


class Expanded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1).expand(-1, 8)


@pytest.mark.parametrize("wanted", [None, (8, 1), (1, 6)])
def test_results_have_the_strides_that_others_were_compiled_for(wanted: tuple[int, int] | None) -> None:
    program = export(Expanded(), (torch.ones(6),)).run_decompositions({})
    moved = move_to_device(program, torch.device("cpu"), {})
    strides = None if wanted is None else [wanted]
    code = capture.generate(moved.module, moved.inputs, "host", False, lambda *_: None, strides)
    assert code.output_strides == [wanted or (1, 0)]

"""A program that no other partitioner takes part in is traced once before the Edge dialect, and becomes the same."""

from __future__ import annotations

import pytest
import torch
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from torch import Tensor, nn
from torch.export.exported_program import ExportedProgram

from etcuda.partitioner.partitioner import CudaPartitioner
from etcuda.partitioner.preview import PartitionRecorder


class Layers(nn.Module):
    """Layers over a cache, with what is decomposed, kept whole, sliced out of lists and written in part or whole."""

    cache: Tensor
    count: Tensor

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.act = nn.SiLU(inplace=in_place)
        self.register_buffer("cache", torch.zeros(1, 2, 16, 4))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[0]) + self.count
        self.count.add_(x.shape[0])
        first, second = self.act(self.layer(self.norm(x))).chunk(2, dim=-1)
        self.cache.index_copy_(2, positions, first.view(1, -1, 1, 4).transpose(1, 2).expand(1, 2, -1, 4))
        query = second.view(1, -1, 1, 4).transpose(1, 2).expand(1, 2, -1, 4)
        y = nn.functional.scaled_dot_product_attention(query, self.cache, self.cache)
        return torch.cumsum(y.softmax(-1), -1)


class Returned(nn.Module):
    """Returns its state, which is to be a copy."""

    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.state.add_(x.softmax(0))
        return self.state


def exported(model: nn.Module) -> ExportedProgram:
    length = torch.export.Dim("length", min=2, max=8)
    return torch.export.export(model.eval(), (torch.randn(4, 8),), dynamic_shapes=({0: length},))


def edge_graph(model: nn.Module, alone: bool) -> str:
    recorder = PartitionRecorder("sm_90", alone=alone)
    config = EdgeCompileConfig(_check_ir_validity=False)
    edge = to_edge_transform_and_lower(exported(model), partitioner=[recorder], compile_config=config)
    program = edge.exported_program()
    return f"{program.graph}\n{program.graph_signature}"


@pytest.mark.parametrize("in_place", [False, True])
def test_the_edge_program_is_the_same(in_place: bool) -> None:
    model = Layers(in_place).requires_grad_(False)
    after = edge_graph(model, alone=False)
    assert "silu" in after
    assert edge_graph(model, alone=True) == after


def test_executorch_gets_what_needs_no_further_trace() -> None:
    partitioner = CudaPartitioner("sm_90", alone=True)
    program = exported(Layers())
    before = str(program.graph)
    made = partitioner.transform_for_pre_decomposition(program)
    assert str(program.graph) == before
    assert made.run_decompositions({}) is made
    kept, _ = partitioner.ops_to_not_decompose(made)
    assert torch.ops.aten.silu.default in kept
    table = dict(torch.export.default_decompositions())
    assert made.run_decompositions({op: table[op] for op in table if op not in kept}) is made
    assert "silu" not in str(made.run_decompositions(table).graph)


def test_a_functional_copy_is_not_made_twice() -> None:
    program = torch.export.export(Returned(), (torch.randn(3),))
    made = CudaPartitioner("sm_90").transform_for_pre_decomposition(program)
    assert made.run_decompositions({}) is made
    assert "softmax.int" in str(made.graph)
    assert "softmax.int" not in str(made.run_decompositions().graph)

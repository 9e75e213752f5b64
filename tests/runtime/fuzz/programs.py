"""Small host programs to mutate: weights within and without, state, several methods, sizes that depend on others."""

from __future__ import annotations

import pathlib

import torch
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from etcuda import CudaPartitioner, save_program

from .mutations import Seed


class Cache(nn.Module):
    """State of zeros, state with content, and a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("total", torch.zeros(8))
        self.register_buffer("count", torch.arange(8.0))

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(self.linear(x).sum(0))
        self.count.add_(1)
        return x * self.total + self.count


class Derived(nn.Module):
    """Twice as many rows of one input as of the other, and looked-up rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 8)

    def forward(self, x: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return x.repeat(2, 1) * y, self.table(rows).softmax(-1)


def write_programs(folder: pathlib.Path) -> list[Seed]:
    """Exports the programs into a folder."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    d = Dim("d", min=1, max=32)
    shapes = ({0: d}, {0: 2 * d}, None)
    inputs = (torch.zeros(3, 8), torch.zeros(6, 8), torch.arange(4))
    cache = Cache()
    methods = {
        "decode": export(cache, (torch.zeros(1, 8),)),
        "prefill": export(cache, (torch.zeros(4, 8),), dynamic_shapes=({0: Dim("rows", min=2, max=16)},)),
    }
    programs: dict[str, ExportedProgram | dict[str, ExportedProgram]] = {
        "weights": export(mlp, (torch.zeros(4, 16),), dynamic_shapes=({0: Dim("rows", min=1, max=64)},)),
        "external": export(mlp, (torch.zeros(4, 16),)),
        "state": methods,
        "derived": export(Derived(), inputs, dynamic_shapes=shapes),
    }
    seeds = []
    for name, program in programs.items():
        place = "ptd" if name == "external" else "pte"
        partitioner = CudaPartitioner("host", options={"weights": place, "progress": False})
        paths = save_program(
            to_edge_transform_and_lower(program, partitioner=[partitioner]).to_executorch(), folder / f"{name}.pte"
        )
        seeds.append(Seed.read(folder / f"{name}.pte", next((path for path in paths if path.suffix == ".ptd"), None)))
    return seeds

"""Sizes that are computed from a symbol, and operators that ask about it while code is generated."""

from __future__ import annotations

import pathlib
from typing import Any

import torch
from executorch.exir import to_edge_transform_and_lower
from torch import nn
from torch.export import Dim

from etcuda import CudaPartitioner, save_program
from etcuda.backend.worker.loading import loaded_with_sizes
from etcuda.torch_private import example_sizes
from tests.run_program import run_program


class Plus(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def test_symbols_keep_their_example_sizes(tmp_path: pathlib.Path) -> None:
    shapes = ({0: 2 * Dim("half", min=2, max=9)},)
    given = torch.export.export(Plus(), (torch.zeros(8, 3),), dynamic_shapes=shapes)
    torch.export.save(given, tmp_path / "m.pt2")
    sizes = {str(symbol): size for symbol, size in example_sizes([_input(given)]).items()}
    assert list(sizes.values()) == [4]
    with loaded_with_sizes(sizes):
        loaded = _input(torch.export.load(tmp_path / "m.pt2"))
    (symbol,) = loaded.shape[0].node.expr.free_symbols
    assert example_sizes([loaded]) == {symbol: 4}
    # What is asked of the symbol has an answer, which PyTorch alone has not.
    assert bool(loaded.shape[0] // 2 - 1 > 1)
    assert example_sizes([_input(torch.export.load(tmp_path / "m.pt2"))]) == {}


def _input(program: torch.export.ExportedProgram) -> Any:
    return next(node.meta["val"] for node in program.graph.nodes if node.op == "placeholder")


class Windows(nn.Module):
    """Windows of 8 columns as Swin's, padded to whole ones."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.pad(x, (0, (8 - x.shape[-1] % 8) % 8))
        return x.reshape(*x.shape[:-1], x.shape[-1] // 8, 8) * 2


def test_padding_to_whole_windows(tmp_path: pathlib.Path) -> None:
    model = Windows()
    shapes = {1: 2 * Dim("half", min=5, max=40)}
    program = torch.export.export(model, (torch.randn(3, 28),), dynamic_shapes=(shapes,))
    lowered = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner("host")])
    save_program(lowered.to_executorch(), tmp_path / "m.pte")
    for columns in (28, 18, 32, 66, 80):
        x = torch.randn(3, columns)
        (got,) = run_program(tmp_path / "m.pte", (x,), (model(x),))
        torch.testing.assert_close(got, model(x))

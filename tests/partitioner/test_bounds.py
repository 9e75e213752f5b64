"""Bounds that ExecuTorch's lowering narrows are said aloud."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges

from etcuda import CudaPartitioner
from etcuda.backend import preprocess
from etcuda.partitioner.bounds import note_bounds, warn_of_narrowed


def convolutions(*, grad: bool) -> ExportedProgram:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)).eval()
    shapes = ({0: Dim("batch", min=1, max=64), 2: Dim("height", min=8, max=64)},)
    return torch.export.export(model.requires_grad_(grad), (torch.randn(2, 3, 8, 16),), dynamic_shapes=shapes)


@pytest.fixture
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_jobs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preprocess, "_preprocess_all", stop)


def lower(program: ExportedProgram) -> None:
    with pytest.raises(KeyboardInterrupt):
        to_edge_transform_and_lower(program, partitioner=[CudaPartitioner("host")])


@pytest.mark.usefixtures("nothing_compiled")
def test_a_narrowed_batch_is_named_with_both_bounds_and_the_way_out() -> None:
    with pytest.warns(UserWarning, match="declared for sizes") as caught:
        lower(convolutions(grad=True))
    (message,) = (str(each.message) for each in caught if "declared for sizes" in str(each.message))
    assert "dimension 0: declared for sizes 1..64" in message
    assert "holds for 2..15 alone" in message
    assert "requires_grad_(False)" in message
    assert "example size" in message


@pytest.mark.usefixtures("nothing_compiled")
def test_bounds_that_stay_draw_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*declared for sizes.*")
        lower(convolutions(grad=False))


@pytest.mark.parametrize(
    ("dim", "left", "words"),
    [
        (Dim("n", max=64), ValueRanges(2, 15), "declared for sizes 0..64, .* holds for 2..15"),
        (Dim("n", min=1, max=64), ValueRanges(4, 64), "declared for sizes 1..64, .* holds for 4..64"),
        (Dim("n"), ValueRanges(2, 15), "declared for sizes from 0, .* holds for 2..15"),
        (Dim("n", max=64), ValueRanges(2, 64), None),
        (Dim("n", max=64), ValueRanges(0, 64), None),
    ],
)
def test_which_bounds_are_narrower(dim: Any, left: ValueRanges[Any], words: str | None) -> None:
    program = torch.export.export(nn.ReLU(), (torch.ones(8),), dynamic_shapes=({0: dim},))
    note_bounds(program)
    (symbol,) = program.range_constraints
    program.range_constraints[symbol] = left
    if words is None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warn_of_narrowed(program)
    else:
        with pytest.warns(UserWarning, match=words):
            warn_of_narrowed(program)


def test_a_size_that_became_a_number() -> None:
    program = torch.export.export(nn.ReLU(), (torch.ones(8),), dynamic_shapes=({0: Dim("n", max=64)},))
    note_bounds(program)
    (placeholder,) = (node for node in program.graph.nodes if node.op == "placeholder")
    placeholder.meta["val"] = placeholder.meta["val"].fake_mode.from_tensor(torch.ones(8), static_shapes=True)
    with pytest.warns(UserWarning, match=r"declared for sizes 0\.\.64, .* holds for 8 alone"):
        warn_of_narrowed(program)

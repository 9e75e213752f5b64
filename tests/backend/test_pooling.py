"""Maximum pooling of images whose sizes are computed from others."""

from __future__ import annotations

import pathlib

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch import nn
from torch.export import Dim

from etcuda import CudaPartitioner, save_program
from tests.run_program import run_program


class Pools(nn.Module):
    """As AlexNet, SqueezeNet and Inception pool; also in 3D, and with the places of the maxima."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        once = nn.functional.max_pool2d(x, 3, 2)
        again, places = nn.functional.max_pool2d(once, 3, 2, return_indices=True)
        return once, again, places, nn.functional.max_pool3d(x, (1, 3, 3), (1, 2, 2))


def test_sizes_that_are_computed(tmp_path: pathlib.Path) -> None:
    model = Pools()
    shapes = {2: 8 * Dim("rows", min=1, max=8) - 1, 3: 8 * Dim("columns", min=1, max=8) - 1}
    program = torch.export.export(model, (torch.randn(1, 3, 31, 23),), dynamic_shapes=(shapes,))
    lowered = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner("host")])
    save_program(lowered.to_executorch(), tmp_path / "m.pte")
    for sizes in ((31, 23), (15, 15), (15, 39), (63, 31)):
        x = torch.randn(1, 3, *sizes)
        expected = model(x)
        got = run_program(tmp_path / "m.pte", (x,), expected)
        assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True)), sizes
    # PyTorch's own tracing took it that more than one row is left.
    with pytest.raises(AssertionError, match=r"expected Ne\(.*, 1\), as the model was exported"):
        run_program(tmp_path / "m.pte", (torch.randn(1, 3, 7, 15),), expected)

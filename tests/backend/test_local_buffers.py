"""Buffers written in place in front of a reduction that is fused with them, on the host."""

from __future__ import annotations

import pathlib

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower

import etcuda.runtime
from etcuda import CudaPartitioner, save_program


class Masks(torch.nn.Module):
    """Masks that are made on the way: through indices, by rows, by a slice, and of what is read twice."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mask = torch.full((8, 8), -1e4)
        rows = torch.arange(8)
        mask[rows[None], rows[:, None]] = 0
        scaled = x.exp()
        scaled[rows % 3] = 1.0
        shifted = x * 2
        shifted[:, 2:5] = x[:, :3]
        added = x.cos()
        added[rows // 2] += x
        results = [torch.softmax(each, dim=-1) for each in (x + mask, scaled, shifted, added)]
        return *results, mask * x, scaled.sum(-1)


def test_masks_in_front_of_a_softmax(tmp_path: pathlib.Path) -> None:
    runtime = pytest.importorskip("executorch.runtime")
    assert etcuda.runtime.is_registered()
    model, x = Masks(), torch.randn(8, 8)
    lowered = to_edge_transform_and_lower(torch.export.export(model, (x,)), partitioner=[CudaPartitioner("host")])
    save_program(lowered.to_executorch(), tmp_path / "masks.pte")
    got = runtime.Runtime.get().load_program(tmp_path / "masks.pte").load_method("forward").execute([x])
    torch.testing.assert_close(tuple(got), model(x), rtol=1e-5, atol=1e-6)

"""``cond`` reads each operand as it lies in memory, however the code in front of it laid it out."""

from __future__ import annotations

import pathlib

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor
from torch.export import Dim, export

import etcuda.runtime
from etcuda import CudaPartitioner

runtime = pytest.importorskip("executorch.runtime")


class Heads(torch.nn.Module):
    """Heads of a projection, split as attention does it, then one of two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(24, 24))
        self.register_buffer("cache", torch.zeros(1, 3, 16, 8))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        heads = (x @ self.weight).view(1, x.shape[1], 3, 8).transpose(1, 2)
        # Traced contiguous, yet free to be laid out as it is computed.
        heads = (heads.double() * 2).float().contiguous()
        cache = self.cache.index_copy_(2, positions, heads)
        few = lambda q, k: q.sin() @ k.transpose(2, 3)  # noqa: E731
        many = lambda q, k: q.cos() @ k.transpose(2, 3)  # noqa: E731
        return torch.cond(x.shape[1] <= 4, few, many, (heads, cache))


def test_operands_laid_out_by_the_compiler(tmp_path: pathlib.Path) -> None:
    assert etcuda.runtime.is_registered()
    torch.manual_seed(0)
    model = Heads()
    inputs = torch.randn(1, 6, 24), torch.arange(6)
    length = Dim("length", min=2, max=16)
    program = export(model, inputs, dynamic_shapes=({1: length}, {0: length}))
    lowered = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner(target="host")])
    path = tmp_path / "heads.pte"
    lowered.to_executorch().save(str(path))
    method = runtime.Runtime.get().load_program(path).load_method("forward")
    model.cache.zero_()
    for count in (6, 3, 11):
        x, positions = torch.randn(1, count, 24), torch.randperm(16)[:count]
        with torch.no_grad():
            expected = model(x, positions)
        torch.testing.assert_close(method.execute([x, positions])[0], expected, rtol=1e-4, atol=1e-4)

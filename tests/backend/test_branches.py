"""``cond`` reads each operand as it lies in memory, however it was laid out; branches may have more kernels than the
graph around them."""

from __future__ import annotations

import itertools
import operator
import pathlib
from types import SimpleNamespace

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor
from torch._inductor.codegen.segmented_tree import SegmentedTree
from torch.export import Dim, export

import etcuda.runtime
from etcuda import CudaPartitioner
from etcuda.backend.inductor.branches import PeakEstimate


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
    runtime = pytest.importorskip("executorch.runtime")
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


class LongBranches(torch.nn.Module):
    """Branches of products, one of which could have the memory of another one that is not right in front of it."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (8, 16, 24, 40, 16, 24, 40, 16, 8)
        for i, (k, n) in enumerate(itertools.pairwise(sizes)):
            self.register_buffer(f"w{i}", torch.randn(k, n) / k**0.5)
        self.count = len(sizes) - 1

    def forward(self, x: Tensor) -> Tensor:
        weights = [getattr(self, f"w{i}") for i in range(self.count)]

        def many(x: Tensor, *weights: Tensor) -> Tensor:
            for weight in weights:
                x = x @ weight
            return x

        return torch.cond(x.shape[0] <= 4, lambda x, *_: x.sin(), many, (x, *weights))


def test_a_branch_with_more_kernels_than_the_graph_around_it() -> None:
    program = export(LongBranches(), (torch.randn(6, 8),), dynamic_shapes=({0: Dim("rows", min=2, max=16)},))
    lowered = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner(target="host")])
    assert lowered.to_executorch().buffer


def test_memory_between_kernels_that_the_estimate_does_not_know_is_not_used_again() -> None:
    estimate = PeakEstimate.__new__(PeakEstimate)
    estimate.overall_peak_memory = 7
    estimate.segmented_tree = SegmentedTree([3, 1, 2], operator.add, max, 0)
    first, last, *beyond = (SimpleNamespace(scheduler_node_index=index) for index in (0, 2, 3, 6))
    assert estimate.peak_between(first, last) == 1
    assert estimate.peak_between(*beyond) == 7
    estimate.update_peak_between(*beyond)
    assert estimate.peak_between(first, last) == 1

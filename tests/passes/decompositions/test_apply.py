"""Formulas in graphs: sizes stay symbolic, and Inductor generates code for all of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim
from torch.utils._pytree import tree_leaves

from etcuda.errors import PassError
from etcuda.options import BackendConfig
from etcuda.passes.base import graph_pass
from etcuda.passes.decompositions.apply import apply_decompositions
from etcuda.passes.manager import run_passes
from etcuda.shims import COMPUTE_SHIMS
from tests.partitioner.lowering import library_calls
from tests.partitioner.programs import edge, export
from tests.passes.decompositions.cases import IMAGE

aten = torch.ops.aten
HOST = BackendConfig("host")


def of_image(x: torch.Tensor) -> list[Any]:
    """(n, 3, h, w)."""
    return [
        F.avg_pool2d(x, 7, 3, 3, False, False),
        F.max_pool2d(x, (6, 7), (3, 2), 2, (2, 1), return_indices=True),
        aten._adaptive_avg_pool2d.default(x, [5, 3]),
        aten.adaptive_max_pool2d.default(x, [5, 3]),
        F.grid_sample(x, x[:, 0, :, :2].unsqueeze(1) / 2, "bicubic", "reflection", True),
        F.interpolate(x, (8, 31), mode="bicubic", antialias=True),
        F.interpolate(x, scale_factor=0.4, mode="bilinear", antialias=True),
    ]


def of_volume(x: torch.Tensor) -> list[Any]:
    """(n, 3, 9, h, w)."""
    return [
        aten._adaptive_avg_pool3d.default(x, [5, 1, 3]),
        F.grid_sample(x, x[:, 0, :, :, :3].unsqueeze(1)[..., 0, :].unsqueeze(1), "bilinear", "border", False),
    ]


def test_sizes_stay_symbolic() -> None:
    batch, height, width = Dim("n", max=9), Dim("h", min=12, max=60), Dim("w", min=12, max=70)

    def call(image: torch.Tensor, volume: torch.Tensor) -> list[torch.Tensor]:
        found: list[torch.Tensor] = tree_leaves([of_image(image), of_volume(volume)])
        return found

    dims = [{0: batch, 2: height, 3: width}, {0: batch, 3: height, 4: width}]
    inputs = torch.randn(2, 3, 19, 23), torch.randn(2, 3, 9, 19, 23)
    program = export(call, *inputs, dynamic=dims).run_decompositions()
    declared = dict(program.range_constraints)
    assert apply_decompositions.run(program, HOST) == 9
    program.graph_module.recompile()
    assert apply_decompositions.run(program, HOST) == 0
    assert set(library_calls(program)) <= COMPUTE_SHIMS["host"].keys()
    assert program.range_constraints == declared
    for n, h, w in ((2, 12, 13), (9, 33, 47), (2, 60, 12)):
        given = torch.randn(n, 3, h, w), torch.randn(n, 3, 9, h, w)
        torch.testing.assert_close(program.module()(*given), call(*given), rtol=1e-4, atol=1e-4)


def test_several_results_and_an_unused_one() -> None:
    def both(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return F.max_pool2d(x, 7, return_indices=True)[1], F.max_pool2d(x, 6, 1)

    program = edge(both, IMAGE)
    run_passes(program, HOST)
    assert aten.max_pool2d_with_indices.default not in {node.target for node in program.graph.nodes}
    got = program.graph_module(IMAGE)
    for one, other in zip(got, both(IMAGE), strict=True):
        assert torch.equal(one, other)


def test_small_windows_are_left_to_inductor() -> None:
    program = export(lambda x: aten.avg_pool2d.default(x, [3, 3]), IMAGE).run_decompositions()
    assert apply_decompositions.run(program, HOST) == 0


def test_control_flow() -> None:
    def pooled(x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, 7, 1)

    program = edge(lambda x: torch.cond(x.sum() > 0, pooled, lambda x: pooled(x) + 1, (x,)), IMAGE)
    run_passes(program, HOST)
    targets = {
        node.target
        for module in program.graph_module.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
    }
    assert aten.avg_pool2d.default not in targets


def test_what_the_rule_should_have_left_is_named() -> None:
    program = export(lambda x: aten.avg_pool2d.default(x.long(), [7, 7]), IMAGE).run_decompositions()

    @graph_pass()
    def formulas(program: Any, config: BackendConfig) -> int:
        return apply_decompositions.run(program, config)

    with pytest.raises(PassError, match=r"average pooling takes floating dtypes, got torch.int64"):
        run_passes(program, HOST, (formulas,))

"""Counts of which a program takes a fixed number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from etcuda import partition_report
from etcuda.options import BackendConfig
from etcuda.partitioner.bincounts import fix_bincounts
from tests.partitioner.programs import export

HOST = BackendConfig("host")
X, W = torch.tensor([3, 11, 0, 3, 7, 2]), torch.randn(6)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: torch.bincount(x, minlength=8)[:8],
        lambda x, w: torch.bincount(x, w, minlength=8).narrow(0, 2, 4) + 1,
        lambda x, w: torch.bincount(x, minlength=8)[1:3] * torch.bincount(x, minlength=2)[:2],
        # With a cast, beside which the exporter writes a check that has no result.
        lambda x, w: torch.bincount(x, minlength=8)[:8] * w.to(torch.float64).sum(),
    ],
)
def test_a_fixed_number_of_counts_is_served(function: Callable[..., Any]) -> None:
    program = export(function, X, W)
    fixed = fix_bincounts(program, HOST)
    assert torch.ops.aten.bincount.default not in {node.target for node in fixed.graph.nodes}
    torch.testing.assert_close(fixed.module(check_guards=False)(X, W), function(X, W))
    report = partition_report(program, "sm_90")
    assert report.refusals == ()
    assert torch.ops.aten.bincount.default in {node.target for node in program.graph.nodes}


def test_counts_whose_number_depends_on_data_stay() -> None:
    program = export(lambda x: torch.bincount(x, minlength=8), X)
    assert fix_bincounts(program, HOST) is program
    reasons = [each.reason for each in partition_report(program, "host").refusals]
    assert any("depends on data" in reason for reason in reasons)

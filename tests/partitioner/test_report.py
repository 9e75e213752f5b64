"""The report names every refusal, with its values, and changes nothing."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from torch.export import Dim

from etcuda import CudaPartitioner, partition_report
from etcuda.partitioner import partitioner
from tests.partitioner.programs import edge
from tests.partitioner.tagging import X, left_over, model


def test_counts_and_reasons() -> None:
    report = partition_report(edge(model, X), "host")
    assert report.total == 6
    assert report.delegated == sum(report.partitions) == 4
    assert len(report.partitions) == 2
    first, *_ = report.refusals
    assert (first.node, first.op) == ("tests_left_over_default", "tests.left_over.default")
    assert "no lowering" in first.reason
    assert report.summary() == "4 of 6 nodes delegated in 2 partitions"


def test_the_table_puts_equal_refusals_together() -> None:
    text = str(partition_report(edge(model, X), "host"))
    assert text.startswith("4 of 6 nodes delegated in 2 partitions\n")
    assert "tests_left_over_default and 1 more" in text


def test_nothing_left_is_one_line() -> None:
    assert str(partition_report(edge(lambda x: x.sin(), X), "host")) == "1 of 1 nodes delegated in 1 partitions"


def test_values_are_there_for_tools() -> None:
    program = edge(lambda x: x @ x, torch.ones(3, 3, dtype=torch.int64))
    (refused,) = partition_report(program, "sm_90").refusals
    assert refused.values == {"dtype": "int64"}
    assert "got int64" in refused.reason


def test_a_buffer_that_stays_is_reported() -> None:
    def state(m: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = left_over(m.state * x, 6)  # type: ignore[operator]
        m.state.copy_(y.exp())  # type: ignore[union-attr,operator]
        return y

    report = partition_report(edge(state, X, state=torch.zeros(4, 6)), "host")
    (kept,) = (each for each in report.refusals if each.kept_buffer)
    assert kept.node == "state"
    assert "outside the partition that writes it (etcuda_1)" in kept.reason


def test_a_size_that_depends_on_data() -> None:
    program = edge(lambda x: x.nonzero() * 2, X)
    reasons = [each.reason for each in partition_report(program, "host").refusals]
    assert len(reasons) == 5
    assert all(re.search(r"its size u\d+ depends on data", reason) for reason in reasons)


def test_a_dynamic_adaptive_pool() -> None:
    program = edge(
        lambda x: torch.nn.functional.adaptive_avg_pool2d(x, 3),
        torch.randn(1, 2, 9, 9),
        dynamic=[{2: Dim("h", min=4, max=32)}],
    )
    assert partition_report(program, "host").refusals == ()


def test_the_partitioner_logs_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, partitioner.__name__):
        CudaPartitioner("host").partition(edge(model, X))
    assert "4 of 6 nodes delegated" in caplog.text

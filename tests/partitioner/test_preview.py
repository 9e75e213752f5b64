"""A preview of the partition changes nothing, and takes programs before and after to_edge."""

from __future__ import annotations

import pytest
import torch

from etcuda import partition_report
from etcuda.errors import OptionError, TargetError
from tests.partitioner.programs import edge, export
from tests.partitioner.tagging import X, model


def test_a_program_from_torch_export() -> None:
    report = partition_report(export(lambda x: torch.nn.functional.silu(x @ x.T), X), "host")
    assert report.refusals == ()
    assert len(report.partitions) == 1


def test_the_program_is_not_changed() -> None:
    program = edge(model, X)
    before = [(node.name, node.target, dict(node.meta)) for node in program.graph.nodes]
    partition_report(program, "host")
    assert [(node.name, node.target, dict(node.meta)) for node in program.graph.nodes] == before


def test_bad_input() -> None:
    with pytest.raises(TypeError, match=r"got Linear. Call torch.export.export"):
        partition_report(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(TargetError, match="sm_91"):
        partition_report(export(model, X), "sm_91")
    with pytest.raises(OptionError, match="speed"):
        partition_report(export(model, X), "host", {"speed": 11})

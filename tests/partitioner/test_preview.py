"""A preview of the partition changes nothing, and takes programs before and after to_edge."""

from __future__ import annotations

import pytest
import torch
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

from etcuda import partition_report
from etcuda.errors import OptionError, TargetError
from etcuda.partitioner.preview import PartitionRecorder
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


def test_counts_are_those_of_the_lowering() -> None:
    program = export(lambda x: torch.nn.functional.silu(x @ x.T) + torch.baddbmm(x[None], x[None], x[None]), X[:, :4])
    partitioner = PartitionRecorder("sm_90")
    to_edge_transform_and_lower(program, partitioner=[partitioner])
    report = partition_report(program, "sm_90")
    assert report == partitioner.report
    assert report.total == 8  # silu and baddbmm are one each


def test_a_program_whose_sizes_depend_on_data_lowers_afterwards() -> None:
    """Its symbols are made anew by every lowering."""
    program = export(lambda x: (x[x.exp() > 1].sum(), x.nonzero()), X)
    environment = next(iter(program.graph.nodes)).meta["val"].fake_mode.shape_env
    before = {name: str(value) for name, value in vars(environment).items() if name != "counter"}
    first = partition_report(program, "host").summary()
    assert partition_report(program, "host").summary() == first
    changed = {name for name, value in vars(environment).items() if name in before and str(value) != before[name]}
    assert all(name.endswith(("_counter", "counter")) for name in changed), changed
    to_edge_transform_and_lower(program)


def test_a_compile_config_is_kept_to() -> None:
    """An operator that it preserves is one call in the report as in the lowering; its checks are left out."""
    program = export(lambda x: torch.nn.functional.hardsigmoid(x), X)
    config = EdgeCompileConfig(preserve_ops=[torch.ops.aten.hardsigmoid.default])
    partition_report(program, "host", compile_config=config)
    assert config == EdgeCompileConfig(preserve_ops=[torch.ops.aten.hardsigmoid.default])
    partition_report(export(lambda x: torch.linalg.qr(x)[0], X), "host")


def test_bad_input() -> None:
    with pytest.raises(TypeError, match=r"got Linear. Call torch.export.export"):
        partition_report(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(TargetError, match="sm_91"):
        partition_report(export(model, X), "sm_91")
    with pytest.raises(OptionError, match="speed"):
        partition_report(export(model, X), "host", {"speed": 11})

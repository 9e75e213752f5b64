"""Claimed operators outside Core ATen pass ExecuTorch's check with three lines, whoever lists them."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from executorch.exir import to_edge, to_edge_transform_and_lower
from torch.export import Dim, ExportedProgram

from etcuda import CudaPartitioner, partition_report, save_program
from etcuda.partitioner.outside_core import ExemptingProgram, restore_unclaimed
from etcuda.partitioner.preview import PartitionRecorder
from tests.partitioner.programs import export
from tests.partitioner.tagging import left

aten = torch.ops.aten
X = torch.rand(4, 8)
EDGES = torch.arange(5.0)


def both(x: Any) -> tuple[Any, ...]:
    """Claimed on every target; the pooling comes from a decomposition."""
    return torch.hypot(x, x + 1), torch.special.i0(x), F.adaptive_max_pool1d(x, 2)


def device(x: Any, edges: Any) -> tuple[Any, ...]:
    """Claimed on a GPU."""
    scanned = torch.cond(x.sum() > 0, lambda x: torch.cumprod(x, -1), lambda x: torch.hypot(x, x), (x,))
    return *both(x), torch.cumprod(x, -1) + 1, torch.bucketize(x, edges), torch.searchsorted(edges, x), scanned


class Whole(CudaPartitioner):
    """Returns operators of its own, which have a decomposition or none."""

    def ops_to_not_decompose(self, ep: ExportedProgram) -> Any:
        ops, check = super().ops_to_not_decompose(ep)
        return [*ops, aten.cumprod.default, aten.hypot.default, aten.hardsigmoid.default], check


class WholeRecorder(Whole, PartitionRecorder):
    """Finds out what the other would claim."""


@pytest.mark.parametrize("recorder", [PartitionRecorder, WholeRecorder])
def test_the_check_passes_and_all_is_claimed(recorder: type[PartitionRecorder]) -> None:
    partitioner = recorder("sm_90")
    to_edge_transform_and_lower(export(device, X, EDGES), partitioner=[partitioner])
    report = partitioner.report
    assert report is not None
    assert (report.refusals, len(report.partitions)) == ((), 1)
    assert partition_report(export(device, X, EDGES), "sm_90") == report


def test_sizes_stay_dynamic() -> None:
    partitioner = PartitionRecorder("sm_90")
    program = export(lambda x: torch.cumprod(x, -1), X, dynamic=[{0: Dim("n", min=2, max=50)}])
    edge = to_edge_transform_and_lower(program, partitioner=[partitioner]).exported_program()
    assert isinstance(edge.graph.output_node().all_input_nodes[0].meta["val"].shape[0], torch.SymInt)


def test_a_lowered_program_runs(tmp_path: pathlib.Path) -> None:
    from executorch.runtime import Runtime

    import etcuda.runtime  # noqa: F401  registers the delegate

    lowered = to_edge_transform_and_lower(export(both, X), partitioner=[Whole("host")])
    assert left(lowered)["executorch_call_delegate"] == 1
    save_program(lowered.to_executorch(), tmp_path / "m.pte")
    got = Runtime.get().load_program(tmp_path / "m.pte").load_method("forward").execute((X,))
    torch.testing.assert_close(tuple(got), both(X))


def test_what_is_refused_is_left_as_it_is_called() -> None:
    program = export(lambda x: torch.linalg.qr(x.sin())[0].cos(), X)
    report = partition_report(program, "sm_90")
    assert [each.op for each in report.refusals] == ["aten.linalg_qr.default", "getitem"]
    with pytest.raises(Exception, match=r"linalg_qr.default is not in Core ATen opset"):
        to_edge_transform_and_lower(program, partitioner=[CudaPartitioner("sm_90")])


def test_what_is_not_claimed_after_all_gets_its_name_back() -> None:
    program = export(lambda x: torch.cumprod(x, -1), X)
    exempting = ExemptingProgram.of(program, CudaPartitioner("sm_90").config)
    manager = to_edge(exempting.run_decompositions({}))
    assert left(manager) == {"etcuda_exempt.cumprod.default": 1}
    restore_unclaimed(manager.exported_program().graph_module, set())
    assert left(manager) == {"aten.cumprod.default": 1}
    assert [node.target for node in program.graph.nodes if node.op == "call_function"] == [aten.cumprod.default]

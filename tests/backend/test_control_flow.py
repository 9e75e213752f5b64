"""Loops, scans and maps with weights inside are compiled in the delegate, and compute what Python's loops do."""

from __future__ import annotations

import pathlib

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower

import etcuda.runtime
from etcuda import CudaPartitioner, partition_report, save_program
from tests.backend.loops import Loops, exported
from tests.partitioner.tagging import left


def test_on_the_host(tmp_path: pathlib.Path) -> None:
    runtime = pytest.importorskip("executorch.runtime")
    assert etcuda.runtime.is_registered()
    torch.manual_seed(0)
    model = Loops()
    program = exported(model)
    assert partition_report(program, "host").refusals == ()
    lowered = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner("host")])
    assert left(lowered)["executorch_call_delegate"] == 1
    save_program(lowered.to_executorch(), tmp_path / "loops.pte")
    method = runtime.Runtime.get().load_program(tmp_path / "loops.pte").load_method("forward")
    for count, sign in ((0, 1), (1, -1), (2, 1)):
        x = torch.rand(5, 8) * sign
        with torch.no_grad():
            expected = model.expected(x, torch.tensor(count))
        got = tuple(method.execute([x, torch.tensor(count)]))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_for_a_gpu() -> None:
    lowered = to_edge_transform_and_lower(exported(Loops()), partitioner=[CudaPartitioner("sm_90")])
    assert left(lowered)["executorch_call_delegate"] == 1

"""Sorts, scans, searches and reductions through indices in programs for the host, by the runtime's own functions."""

from __future__ import annotations

import pathlib

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower

from etcuda import CudaPartitioner, save_program
from tests.exhaustive import only
from tests.passes.library.order_cases import FAMILIES, AllOf
from tests.run_program import run_program


def export(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], target: str, path: pathlib.Path) -> None:
    program = torch.export.export(model, inputs)
    lowered = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner(target)])
    save_program(lowered.to_executorch(), path)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_the_host_computes_what_eager_does(dtype: torch.dtype, tmp_path: pathlib.Path) -> None:
    model = AllOf([case for family in FAMILIES.values() for case in family(dtype)])
    export(model, model.inputs(), "host", tmp_path / "m.pte")
    model.check(run_program(tmp_path / "m.pte", model.inputs(), model(*model.inputs())))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dtype", "step"),
    # Each third is each operator once, and each size.
    [("scan", torch.float32, 3), only(False, "scan", torch.float32, 1), only(False, "search", torch.bfloat16, 1)],
)
def test_for_a_gpu(family: str, dtype: torch.dtype, step: int, tmp_path: pathlib.Path) -> None:
    # A call of a library that the runtime lacks is refused when the code is linked.
    model = AllOf(list(FAMILIES[family](dtype))[::step])
    export(model, model.inputs(), "sm_90", tmp_path / "model.pte")

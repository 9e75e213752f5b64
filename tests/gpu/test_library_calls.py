"""Sorts, scans, searches and reductions through indices on the local GPU."""

from __future__ import annotations

import pathlib

import pytest
import torch

from examples.running import gpu_arch
from tests.backend.test_library_calls import export
from tests.passes.library.order_cases import DTYPES, FAMILIES, AllOf
from tests.run_program import run_program


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gpu_computes_what_eager_does(family: str, dtype: torch.dtype, tmp_path: pathlib.Path) -> None:
    arch = gpu_arch()
    assert arch is not None
    model = AllOf(list(FAMILIES[family](dtype)))
    if not model.cases:
        pytest.skip(f"no case of {family} takes {dtype}")
    export(model, model.inputs(), arch, tmp_path / "m.pte")
    model.check(run_program(tmp_path / "m.pte", model.inputs(), model(*model.inputs())))

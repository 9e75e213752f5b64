"""Reductions of every dtype on the host: generated code is not taken at its word."""

from __future__ import annotations

import pathlib

import pytest

from tests.backend.test_library_calls import export
from tests.passes.library.order_cases import AllOf
from tests.passes.library.reduction_cases import reduction_cases
from tests.run_program import run_program


@pytest.mark.slow
def test_every_reduction_of_every_dtype(tmp_path: pathlib.Path) -> None:
    model = AllOf(list(reduction_cases()))
    export(model, model.inputs(), "host", tmp_path / "m.pte")
    model.check(run_program(tmp_path / "m.pte", model.inputs(), model(*model.inputs())))

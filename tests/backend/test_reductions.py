"""Reductions of every dtype on the host: generated code is not taken at its word."""

from __future__ import annotations

import pathlib

import pytest

from tests.backend.test_library_calls import export
from tests.exhaustive import only
from tests.passes.library.order_cases import DTYPES, AllOf
from tests.passes.library.reduction_cases import BYTES, reduction_cases
from tests.run_program import run_program


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, only(False, 1)])
def test_every_reduction_of_every_dtype(step: int, tmp_path: pathlib.Path) -> None:
    # Bytes have six cases of a reduction, of which each second meets each dimension and each sign.
    cases = list(reduction_cases(BYTES))[::step]
    cases += reduction_cases(tuple(dtype for dtype in DTYPES if dtype not in BYTES))
    model = AllOf(cases)
    export(model, model.inputs(), "host", tmp_path / "m.pte")
    model.check(run_program(tmp_path / "m.pte", model.inputs(), model(*model.inputs())))

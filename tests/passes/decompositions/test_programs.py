"""Formulas in a compiled program for the host."""

from __future__ import annotations

import pathlib

import pytest

from tests.passes.case_programs import check_cases
from tests.passes.decompositions.cases import spatial_cases
from tests.passes.decompositions.quantized_cases import quantized_cases

# Few of each family: compiling takes a second for each.
NAMES = {
    "avg_pool2d 7 3 3 True False",
    "max_pool3d 4 2 1 2 True",
    "adaptive_avg_pool3d (3, 2, 5)",
    "adaptive_max_pool2d (2, 3)",
    "grid_sample 3d bilinear reflection False",
    "antialiased bilinear False {'size': (8, 31)}",
    "quantize channel",
    "token",
    "dequantize channel None",
    "_int_mm 33 1300 24",
}


@pytest.mark.slow
def test_matches_eager(tmp_path: pathlib.Path) -> None:
    cases = [case for case in (*spatial_cases(), *quantized_cases()) if case.name in NAMES]
    assert {case.name for case in cases} == NAMES
    check_cases("host", tmp_path, cases, 3e-5)

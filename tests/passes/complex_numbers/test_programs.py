"""Complex numbers in a compiled program for the host."""

from __future__ import annotations

import pathlib

import pytest
import torch

from etcuda import partition_report
from tests.passes.case_programs import check_cases
from tests.passes.complex_numbers.models import Filter, Rotary, Spectrogram
from tests.passes.decompositions.cases import Case


@pytest.mark.slow
def test_matches_eager(tmp_path: pathlib.Path) -> None:
    cases = [
        Case("rotary", Rotary(), (torch.randn(2, 5, 3, 8),)),
        Case("spectrogram", Spectrogram(), (torch.randn(2, 200),)),
        Case("filter", Filter(197), (torch.randn(3, 197),)),
    ]
    check_cases("host", tmp_path, cases, 1e-5)


def test_the_report_sees_real_numbers() -> None:
    program = torch.export.export(Rotary(), (torch.randn(2, 5, 3, 8),))
    report = partition_report(program, "sm_90")
    assert (report.refusals, len(report.partitions)) == ((), 1)

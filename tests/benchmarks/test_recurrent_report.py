"""The page of recurrent layers, from rows that were not measured."""

from __future__ import annotations

import json
import pathlib

from benchmarks.recurrent.report import render


def test_a_page_has_times_floors_and_reasons(tmp_path: pathlib.Path) -> None:
    rows = [
        {"cell": "step", "engine": "etcuda", "nbytes": 4_000_000, "flops": 1, "error": 0.001, "us": 2.0,
         "spread_us": 0.1},
        {"cell": "step", "engine": "peer", "nbytes": 4_000_000, "flops": 1, "reason": "not installed: x"},
    ]  # fmt: skip
    value = {"environment": {"gpu": "G"}, "ceilings": {"read_bytes_per_s": 4e12, "flops_per_s": 1e15}, "rows": rows}
    source = tmp_path / "recurrent.json"
    source.write_text(json.dumps(value))
    render(source, tmp_path / "page")
    page = (tmp_path / "page" / "recurrent.md").read_text()
    assert "| step | etcuda | 2.00 (0.10) | 1.00 | 50% | 1.0e-03 |" in page
    assert "| step | peer | - | - | - | not installed: x |" in page

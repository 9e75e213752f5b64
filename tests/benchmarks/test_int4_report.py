"""The page of the int4 benchmark, from rows that are made up."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from benchmarks.int4.cells import CELLS
from benchmarks.int4.report import best, floor_us, render


def row(
    engine: str, us: float | None, cell: str = "M 1, 4096x4096", kind: str = "decode", m: int = 1
) -> dict[str, Any]:
    times = None if us is None else {"median_us": us, "mean_us": us, "spread_us": 0.1}
    reason = None if us else "it was not there"
    flops = 2 * m * 43008 * 5376
    return {
        "kind": kind, "cell": cell, "m": m, "n": 43008, "k": 5376, "engine": engine, "weight_bytes": 4_360_000,
        "flops": flops, "choice": "", "reason": reason, "error": None if us is None else 2e-3, "times": times,
    }  # fmt: skip


def test_the_best_of_us_and_of_the_others() -> None:
    rows = [row("etcuda", 4.0), row("tinygemm", 8.0), row("cuBLAS bf16", 7.0), row("read", 1.0), row("torchao", None)]
    assert best(rows, True) == 4.0
    assert best(rows, False) == 7.0
    assert best(rows[:1], False) is None
    assert floor_us(rows[0]) == pytest.approx(1.0)


def test_the_page(tmp_path: pathlib.Path) -> None:
    rows = [row("etcuda", 4.0), row("tinygemm", 8.0), row("read", 2.0), row("torchao default", None)]
    rows += [row("etcuda", 100.0, "M 512, 43008x5376", "prefill", 512)]
    source = tmp_path / "int4.json"
    ceilings = {"read_bytes_per_s": 4e12, "flops_per_s": 8e14}
    other = tmp_path / "prompt.json"
    prompt = [row("etcuda", 3.0, "M 16, 4096x4096", "prompt", 16)]
    rows.append(row("etcuda", 5.0, "M 16, 4096x4096", "prompt", 16))
    source.write_text(json.dumps({"environment": {"gpu": "made up"}, "ceilings": ceilings, "rows": rows}))
    other.write_text(json.dumps({"environment": {"gpu": "another"}, "ceilings": ceilings, "rows": prompt}))
    render([source, other], tmp_path / "page")
    text = (tmp_path / "page" / "int4.md").read_text()
    assert "| M 1, 4096x4096 | 1.0 | 4.00 (0.10) | 8.00 (0.10) | 2.00 (0.10) | 25% | 2.0e-03 | 0.50 |" in text
    assert f"| {2 * 512 * 43008 * 5376 / 100 / 1e6:.0f} | 2.0e-03 | - |" in text
    assert "- torchao default: it was not there" in text
    # A section is of the last run that has it.
    assert "Run of decode, prefill: gpu made up." in text
    assert "Run of prompt: gpu another." in text
    assert "3.00 (0.10)" in text
    assert "5.00 (0.10)" not in text
    assert (tmp_path / "page" / "int4.png").stat().st_size > 1000


def test_the_cells() -> None:
    assert len({(cell.kind, cell.name, cell.problem) for cell in CELLS}) == len(CELLS)
    assert [cell.problem.m for cell in CELLS[:8]] == [1] * 8

"""The page of the attention benchmark, from made-up figures; measuring needs a GPU."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys

import pytest
import torch

from benchmarks.attention import __main__ as command
from benchmarks.attention import report
from benchmarks.attention.cells import CELLS, RECORDED_US
from benchmarks.attention.engines import ENGINES, OURS, UnsupportedError, executorch, ours
from benchmarks.attention.run import Row
from etcuda.kernels.attention.problem import cost
from etcuda.kernels.attention.shapes import DECODE_LENGTHS
from etcuda.kernels.common.device import LocalDevice

DEVICE = LocalDevice("sm_90", 132, 227 << 10, 60 << 20)


def row(index: int, engine: str, us: float | None) -> Row:
    cell = CELLS[index]
    least = cost(cell.problem)
    times = {} if us is None else {"graph cold": {"median_us": us, "mean_us": us, "spread_us": 0.5}}
    reason = "refused" if us is None else None
    sizes = (cell.problem.batch, cell.problem.l_q, cell.problem.l_kv)
    return Row(cell.kind, cell.name, cell.family, *sizes, engine, reason, 1e-3, times, least.nbytes, least.flops)


def test_the_page(tmp_path: pathlib.Path) -> None:
    prefill = next(index for index, cell in enumerate(CELLS) if cell.kind == "prefill")
    rows = [
        row(0, "etcuda split", 4.0),
        row(0, "torch flash", 5.0),
        row(0, "torch cuDNN", None),
        row(1, "etcuda split", 9.0),
        row(1, "torch flash", 8.0),
        row(prefill, "etcuda tiled", 100.0),
        row(prefill, "torch flash", 80.0),
    ]
    value = {
        "environment": {"gpu": "made up"},
        "ceilings": {"read_bytes_per_s": 4e12, "flops_per_s": 8e14},
        "rows": [dataclasses.asdict(each) for each in rows],
    }
    source = tmp_path / "attention.json"
    source.write_text(json.dumps(value))
    report.render(source, tmp_path)
    page = (tmp_path / "attention.md").read_text()
    assert "| 4.00 (0.50) | 5.00 (0.50) |" in page
    assert "2 cells: geometric mean of ratios 0.949, greatest 1.12." in page
    # Recorded: 6.4 and 7.9, so that the best known are 5.0 and 7.9.
    assert "| gemma | 64 | 4.00 | 5.00 | 6.4 | 0.80 |" in page
    assert "| gemma | 128 | 9.00 | 8.00 | 7.9 | 1.14 |" in page
    assert "| 1.25 |" in page
    assert (tmp_path / "attention.png").read_bytes()[:4] == b"\x89PNG"


def test_the_most_important_cells_come_first() -> None:
    first = CELLS[:36]
    assert [(cell.family, cell.problem.l_kv) for cell in first] == [(f, n) for f in RECORDED_US for n in DECODE_LENGTHS]
    assert all(len(recorded) == len(DECODE_LENGTHS) for recorded in RECORDED_US.values())
    assert len({cell.name + cell.kind for cell in CELLS}) == len(CELLS)
    assert set(OURS) <= set(ENGINES)


def test_engines_say_what_they_do_not_take() -> None:
    prefill = next(cell for cell in CELLS if cell.kind == "prefill")
    with pytest.raises(UnsupportedError, match="L_q is at most 16"):
        ours("etcuda split", prefill, DEVICE)
    with pytest.raises(UnsupportedError, match="decode only"):
        executorch("sdpa_decode_splitk", prefill, DEVICE)
    assert callable(ours("etcuda tiled", prefill, DEVICE))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks.attention", "run"])
    assert command.main() == 2
    assert "expected an NVIDIA GPU, found none" in capsys.readouterr().err

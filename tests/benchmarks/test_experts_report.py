"""The page of the experts' benchmark, from rows that are made up."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest
import torch

from benchmarks.experts.__main__ import main
from benchmarks.experts.cells import CELLS
from benchmarks.experts.report import render
from benchmarks.experts.run import Row
from etcuda.kernels.experts.problem import refuse


def test_the_page(tmp_path: pathlib.Path) -> None:
    rows = [
        Row("A model", "int4", 1, "etcuda", 14_000_000, 50_000_000, error=1e-2, us=7.0, spread_us=0.1),
        Row("A model", "bf16", 2048, "etcuda", 1_000_000, 100_000_000_000, error=1e-3, us=250.0, spread_us=1.0),
        Row("A model", "bf16", 2048, "another", 1_000_000, 1, reason="it was not there"),
    ]
    value = {
        "environment": {"gpu": "made up"}, "ceilings": {"read_bytes_per_s": 4e12},
        "rows": [dataclasses.asdict(row) for row in rows],
    }  # fmt: skip
    source = tmp_path / "experts.json"
    source.write_text(json.dumps(value))
    render(source, tmp_path)
    few, many = (tmp_path / "experts.md").read_text().split("## Many tokens")
    assert "gpu made up." in few
    assert "| A model | int4 | 1 | etcuda | 7.0 | 3.5 | 50% | 7 |" in few
    assert "| A model | bf16 | 2048 | etcuda | 250.0 | 0.2 | 0% | 400 |" in many
    assert "| A model | bf16 | 2048 | another | it was not there | 0.2 | | |" in many


def test_the_cells_are_served() -> None:
    assert len(set(CELLS)) == len(CELLS)
    assert all(refuse(cell.model.problem(cell.tokens, cell.weights)) is None for cell in CELLS)


@pytest.mark.parametrize(("tokens", "gpu", "words"), [("3", True, "expected tokens among"), ("1", False, "found none")])
def test_what_it_does_not_measure(
    tokens: str, gpu: bool, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    for command in ("run", "stages"):
        monkeypatch.setattr("sys.argv", ["experts", command, "--tokens", tokens])
        assert main() == 2
        assert words in capsys.readouterr().err

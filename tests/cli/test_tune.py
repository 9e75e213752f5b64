"""``etcuda tune``: which tuner runs, with which options. What the tuners do is tested with the kernels."""

from __future__ import annotations

import math
import pathlib

import pytest

from etcuda.cli import main
from etcuda.kernels.common import tuner
from etcuda.kernels.common.tuner import TuneOptions


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, TuneOptions]]:
    """Calls of the tuner, which ends with status 7."""
    seen: list[tuple[str, TuneOptions]] = []

    def run(family: str, options: TuneOptions) -> int:
        seen.append((family, options))
        return 7

    monkeypatch.setattr(tuner, "run", run)
    return seen


@pytest.mark.parametrize("family", tuner.families())
def test_options_reach_the_tuner_and_its_status_comes_back(family: str, runs: list[tuple[str, TuneOptions]]) -> None:
    words = ["--arch", "sm_90", "--out", "a/b.json", "--resume", "c.json", "--budget-s", "90", "--jobs", "3"]
    assert main(["tune", family, *words, "--only", "split"]) == 7
    path = pathlib.Path
    assert runs == [(family, TuneOptions("sm_90", path("a/b.json"), path("c.json"), 90, 3, "split"))]


def test_defaults(runs: list[tuple[str, TuneOptions]]) -> None:
    assert main(["tune", "int4"]) == 7
    ((family, options),) = runs
    assert family == "int4"
    assert 1 <= options.jobs <= 14
    assert options == TuneOptions(None, None, None, math.inf, options.jobs, None)


@pytest.mark.parametrize(
    ("family", "hint"), [("int5", " Did you mean 'int"), ("atention", " Did you mean 'attention'?"), ("gemm", "")]
)
def test_an_unknown_family(
    family: str, hint: str, runs: list[tuple[str, TuneOptions]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", family]) == 2
    known = ", ".join(tuner.families())
    error = capsys.readouterr().err
    assert error.startswith(f"etcuda: tune: expected one of the kernel families {known}, got {family!r}.{hint}")
    assert runs == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--jobs", "0"], "0 is not in the range"),
        (["--budget-s", "soon"], "'soon' is not a valid float"),
        (["--bogus"], "No such option"),
    ],
)
def test_a_senseless_option(
    words: list[str], message: str, runs: list[tuple[str, TuneOptions]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "int4", *words]) == 2
    assert message in capsys.readouterr().err
    assert runs == []

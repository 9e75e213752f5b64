"""``etcuda tune``: which tuner runs, with which options. What the tuners do is tested with the kernels."""

from __future__ import annotations

import argparse
import importlib
import math
import pathlib
from typing import Any

import pytest
import torch

from etcuda.cli import main, tuners
from etcuda.cli.tuners import TuneOptions


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, TuneOptions]]:
    """Calls of the tuner, which ends with status 7."""
    seen: list[tuple[str, TuneOptions]] = []

    def run(family: str, options: TuneOptions) -> int:
        seen.append((family, options))
        return 7

    monkeypatch.setattr(tuners, "run", run)
    return seen


@pytest.mark.parametrize("family", tuners.families())
def test_options_reach_the_tuner_and_its_status_comes_back(family: str, runs: list[tuple[str, TuneOptions]]) -> None:
    words = ["--arch", "sm_90", "--out", "a/b.json", "--resume", "c.json", "--budget-s", "90", "--jobs", "3"]
    assert main(["tune", family, *words, "--only", "split"]) == 7
    path = pathlib.Path
    assert runs == [(family, TuneOptions("sm_90", path("a/b.json"), 1.5, 3, path("c.json"), "split"))]


def test_defaults(runs: list[tuple[str, TuneOptions]]) -> None:
    assert main(["tune", "int4"]) == 7
    ((family, options),) = runs
    assert family == "int4"
    assert 1 <= options.jobs <= 14
    assert options == TuneOptions(None, None, math.inf, options.jobs, None, None)


@pytest.mark.parametrize(
    ("family", "hint"), [("int5", " Did you mean 'int"), ("atention", " Did you mean 'attention'?"), ("gemm", "")]
)
def test_an_unknown_family(
    family: str, hint: str, runs: list[tuple[str, TuneOptions]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", family]) == 2
    known = ", ".join(tuners.families())
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


@pytest.mark.parametrize(
    ("family", "expected"), [("attention", "expected split or tiled"), ("int4", "expected no --only")]
)
def test_a_kernel_that_the_family_does_not_have(family: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", family, "--only", "fast"]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_and_no_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "int4"]) == 2
    assert "expected an NVIDIA GPU, found none" in capsys.readouterr().err


@pytest.mark.parametrize("family", tuners.families())
def test_the_table_that_is_written_is_the_one_that_export_reads(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"etcuda.kernels.{family}.tune")
    seen: list[argparse.Namespace] = []

    def tune(arguments: argparse.Namespace) -> int:
        seen.append(arguments)
        return 0

    monkeypatch.setattr(module, "tune", tune)
    assert main(["tune", family, "--arch", "sm_90", "--budget-s", "45"]) == 0
    (arguments,) = seen
    # There is one for this architecture.
    assert arguments.out.is_file()
    assert (arguments.arch, arguments.resume, arguments.only) == ("sm_90", None, None)
    assert arguments.budget_s == pytest.approx(45)


def test_every_option_of_the_tuners_is_one_of_the_command() -> None:
    from etcuda.cli.tune import command

    options = {name for parameter in command.params for name in parameter.opts}
    for family in tuners.families():
        parser = argparse.ArgumentParser()
        tuner: Any = importlib.import_module(f"etcuda.kernels.{family}.tune")
        tuner.add_arguments(parser)
        assert {name for action in parser._actions for name in action.option_strings} <= {*options, "-h", "--help"}

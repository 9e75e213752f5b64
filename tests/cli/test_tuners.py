"""From the command's options to those of each family's tuner."""

from __future__ import annotations

import argparse
import importlib
import pathlib
from typing import Any

import pytest
import torch

from etcuda.cli import main, tuners


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


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[argparse.Namespace]:
    """What the families' tuners are called with."""
    calls: list[argparse.Namespace] = []

    def tune(arguments: argparse.Namespace) -> int:
        calls.append(arguments)
        return 0

    for family in tuners.families():
        monkeypatch.setattr(importlib.import_module(f"etcuda.kernels.{family}.tune"), "tune", tune)
    return calls


@pytest.mark.parametrize("family", tuners.families())
def test_the_table_that_is_written_is_the_one_that_export_reads(
    family: str, seen: list[argparse.Namespace], capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    # There is one for this architecture.
    assert main(["tune", family, "--arch", "sm_90"]) == 2
    error = capsys.readouterr().err
    assert "etcuda: tune: --out: expected a file to write, for " in error
    assert seen == []
    resumed = str(tmp_path / "x.json")
    assert main(["tune", family, "--arch", "sm_90", "--resume", resumed, "--budget-s", "45"]) == 0
    (arguments,) = seen
    assert arguments.out.is_file()
    assert f" {arguments.out} holds a table" in error
    assert (arguments.arch, str(arguments.resume), arguments.budget_s) == ("sm_90", resumed, 45)
    assert main(["tune", family, "--arch", "sm_70"]) == 0
    assert seen[1].out == arguments.out.with_name("sm_70.json")


def test_every_option_of_the_tuners_is_one_of_the_command() -> None:
    from etcuda.cli.tune import command

    options = {name for parameter in command.params for name in parameter.opts}
    for family in tuners.families():
        parser = argparse.ArgumentParser()
        tuner: Any = importlib.import_module(f"etcuda.kernels.{family}.tune")
        tuner.add_arguments(parser)
        assert {name for action in parser._actions for name in action.option_strings} <= {*options, "-h", "--help"}

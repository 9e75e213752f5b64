"""executor_runner: results, statistics and exit codes."""

from __future__ import annotations

import pathlib
import struct
import sys

import pytest

from .conftest import MakeProgram, run


def _floats(path: pathlib.Path, *values: float) -> pathlib.Path:
    path.write_bytes(struct.pack(f"<{len(values)}f", *values))
    return path


def test_runs_and_writes_its_output(runner: pathlib.Path, make_program: MakeProgram, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out.bin"
    done = run(
        *(runner, "--model_path", make_program(), "--inputs", _floats(tmp_path / "x.bin", 1, 2, 3)),
        *("--input_shapes", "3", "--warmup", "1", "--num_executions=3", "--output_file", out, "--print_stats"),
    )
    assert done.returncode == 0, done.stderr
    # The state of four executions.
    assert struct.unpack("<3f", out.read_bytes()) == (4, 16, 36)
    stats = dict(line.split() for line in done.stdout.splitlines())
    assert stats["executions"] == "3"
    assert 0 < float(stats["min_us"]) <= float(stats["median_us"]) <= float(stats["max_us"])
    assert float(stats["load_ms"]) > 0
    assert int(stats["peak_resident_kib"]) > 0
    assert [path.name for path in tmp_path.iterdir() if ".tmp." in path.name] == []


def test_ones_without_inputs(runner: pathlib.Path, make_program: MakeProgram, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out.bin"
    assert run(runner, "--model_path", make_program(), "--output_file", out).returncode == 0
    assert struct.unpack("<8f", out.read_bytes()) == (1, 2, 3, 4, 5, 6, 7, 8)


def test_external_data_and_methods(runner: pathlib.Path, make_program: MakeProgram) -> None:
    program = make_program(external="weights", methods=["prefill", "decode"])
    data = program.parent / "weights.ptd"
    command = (runner, "--model_path", program, "--method", "decode")
    assert run(*command, "--data_path", data).returncode == 0
    without = run(*command)
    assert without.returncode == 3
    assert "--data_path" in without.stderr


def test_help(runner: pathlib.Path) -> None:
    done = run(runner, "--help")
    assert done.returncode == 0
    for option in ("--model_path", "--data_path", "--method", "--inputs", "--num_executions", "--output_file"):
        assert option in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "--model_path is missing"),
        (("--bogus",), 2, "unknown option --bogus"),
        (("--cuda_graphs", "maybe"), 2, "--cuda_graphs: expected true or false, got 'maybe'"),
        (("--model_path",), 2, "expected a value"),
        (("--model_path", "{program}", "--num_executions", "0"), 2, "whole number from 1"),
        (("--model_path", "{program}", "--inputs", "{x},{x}"), 2, "takes 1 inputs, got 2"),
        (("--model_path", "{missing}"), 3, "cannot open"),
        (("--model_path", "{x}"), 3, "cannot load"),
        (("--model_path", "{program}", "--data_path", "{missing}"), 3, "--data_path: cannot open"),
        (("--model_path", "{program}", "--method", "backward"), 3, "it has forward"),
        (("--model_path", "{program}", "--inputs", "{missing}"), 4, "cannot open"),
        (("--model_path", "{program}", "--inputs", "{x}"), 4, "--input_shapes if it is dynamic"),
        (("--model_path", "{program}", "--input_shapes", "9"), 4, "larger than the largest"),
        (("--model_path", "{program}", "--input_shapes", "2x2"), 4, "expected 1 dimensions"),
        (("--model_path", "{program}", "--output_file", "{missing}/out"), 5, "cannot write"),
        (
            ("--model_path", "{program}", "--inputs", "{trouble}", "--input_shapes", "2"),
            1,
            "running method forward failed",
        ),
    ],
)
def test_exit_codes(
    runner: pathlib.Path,
    make_program: MakeProgram,
    tmp_path: pathlib.Path,
    arguments: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    names = {"x": _floats(tmp_path / "x.bin", 1, 2, 3), "trouble": _floats(tmp_path / "t.bin", -101, 0)}
    names["missing"] = tmp_path / "missing"
    if any("{program}" in argument for argument in arguments):
        names["program"] = make_program()
    done = run(runner, *(argument.format(**names) for argument in arguments))
    assert done.returncode == code, done.stderr
    assert words in done.stderr


def test_console_script_finds_the_runner() -> None:
    done = run(sys.executable, "-m", "etcuda.runner", "--help")
    assert done.returncode == 0, done.stderr
    assert "--model_path" in done.stdout


# Modules of an installation of etcuda that the wheels of executorch and etcuda do not bring. None: an import fails.
WITHOUT = ("torch", "torchao", "triton", "numpy", "click", "rich", "flatbuffers", "executorch.runtime")


def test_the_console_script_needs_no_torch(make_program: MakeProgram, tmp_path: pathlib.Path) -> None:
    code = f"""
import sys
sys.modules.update(dict.fromkeys({WITHOUT!r}))
try:
    import torch
except ModuleNotFoundError:
    pass
import etcuda
from etcuda.runner import main
assert "etcuda.runtime" not in sys.modules
main()
"""
    out = tmp_path / "out.bin"
    done = run(sys.executable, "-c", code, "--model_path", make_program(), "--output_file", out)
    assert done.returncode == 0, done.stderr
    assert struct.unpack("<8f", out.read_bytes()) == (1, 2, 3, 4, 5, 6, 7, 8)
    done = run(sys.executable, "-c", code, "--model_path", tmp_path / "none.pte")
    assert done.returncode == 3
    assert "cannot open" in done.stderr


def test_the_console_script_without_the_program() -> None:
    code = """
import pathlib
from etcuda import library, runner
library._roots = lambda: [pathlib.Path("gone")]
runner.main()
"""
    done = run(sys.executable, "-c", code, "--help")
    assert done.returncode == 3
    assert done.stderr.startswith(
        "executor_runner: executor_runner was not found; tried gone/bin/executor_runner. Install"
    )

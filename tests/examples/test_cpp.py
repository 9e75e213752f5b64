from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from examples.bundle import make_bundle
from examples.cpp.session import run_calls

ROOT = pathlib.Path(__file__).resolve().parents[2]
Export = Callable[[str, str], pathlib.Path]


def test_smallest_export_and_smallest_program(cpp_examples: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "mlp.pte"
    export = [sys.executable, str(ROOT / "examples" / "export_mlp.py"), "host", str(path)]
    subprocess.run(export, check=True, capture_output=True, text=True, cwd=tmp_path)
    done = subprocess.run([cpp_examples / "run_mlp", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[8, 64] ")


def test_missing_program_is_an_error_not_a_crash(cpp_examples: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        [cpp_examples / "run_mlp", tmp_path / "none.pte"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "run_mlp: error" in done.stderr


@pytest.mark.xdist_group("decoder-fp32")
def test_session_keeps_state_between_methods(exported: Export, run_session: pathlib.Path) -> None:
    bundle = make_bundle("decoder-fp32")
    outputs = run_calls(run_session, exported("decoder-fp32", "host"), bundle.calls, like=bundle.eager)
    assert bundle.verdict(outputs).passed


@pytest.mark.xdist_group("decoder-fp32")
def test_two_sessions_take_turns(exported: Export, run_session: pathlib.Path) -> None:
    bundle, model = make_bundle("decoder-fp32"), exported("decoder-fp32", "host")
    alone = run_calls(run_session, model, bundle.calls, like=bundle.eager)
    turns = [call for call in bundle.calls for _ in range(2)]
    like = [tensor for tensor in bundle.eager for _ in range(2)]
    outputs = run_calls(run_session, model, turns, like, sessions=["first", "second"] * len(alone))
    for place, expected in enumerate(alone):
        assert torch.equal(outputs[2 * place], expected)
        assert torch.equal(outputs[2 * place + 1], expected)


@pytest.mark.xdist_group("decoder-fp32")
def test_session_reports_a_wrong_input(exported: Export, run_session: pathlib.Path, tmp_path: pathlib.Path) -> None:
    model = exported("decoder-fp32", "host")
    (tmp_path / "x.bin").write_bytes(bytes(8))
    for line, message in (
        ("decode int64:1x1:x.bin", "failed with error"),
        ("decode int64:1x2:x.bin int64:1:x.bin", "expected 16 bytes, got 8"),
        ("decode int65:1x1:x.bin", "DTYPE one of"),
        ("decode int64:1x1:absent.bin", "cannot read absent.bin"),
        ("encode int64:1x1:x.bin int64:1:x.bin", "failed with error"),
    ):
        (tmp_path / "session.txt").write_text(line + "\n")
        command = [str(run_session), str(model), "session.txt", "."]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 1, line
        assert message in done.stderr


def test_like_decides_the_dtype(exported: Export, run_session: pathlib.Path) -> None:
    bundle = make_bundle("mlp-bf16")
    outputs = run_calls(run_session, exported("mlp-bf16", "host"), bundle.calls, like=bundle.eager)
    assert all(output.dtype == torch.bfloat16 for output in outputs)
    assert bundle.verdict(outputs).passed

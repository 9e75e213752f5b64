"""``etcuda inspect``: text, JSON, and files that are no programs."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest

from etcuda.backend.inspect import inspect_program
from etcuda.cli import main
from tests.conftest import Export


@pytest.fixture
def program(exported: Export) -> pathlib.Path:
    return exported("mlp-fp32", "host")


def test_text(program: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(program)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{program.name}: ")
    assert lines[0].endswith(" KiB")
    rows = [line.split() for line in lines]
    ((delegate,),) = [method.delegates for method in inspect_program(program).methods]
    assert ["method", "target", "code", "host", "kernels", "code", "size", "weights", "state"] in rows
    assert any(row[:5] == ["forward", "host", "native", "x86-64-v3", str(delegate.num_kernels)] for row in rows)
    assert ["forward", "input", "x", "float32", "1..64", "x", "64"] in rows
    assert any(row[:2] == ["forward", "output"] for row in rows)
    assert lines[-1].startswith("Made with etcuda ")
    # Columns stand below their heads.
    head = next(line for line in lines if line.startswith("method") and "target" in line)
    below = lines[lines.index(head) + 1]
    assert below[head.index("target") :].startswith("host")


def test_json(program: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(program), "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert got == json.loads(json.dumps(dataclasses.asdict(inspect_program(program))))
    assert got["methods"][0]["delegates"][0]["images"][0]["target"] == "host"


def test_a_program_of_others(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from executorch.exir import to_edge

    class Add(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x

    path = tmp_path / "add.pte"
    path.write_bytes(to_edge(torch.export.export(Add(), (torch.ones(2),))).to_executorch().buffer)
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "Nothing in it is delegated to etcuda." in shown
    assert "forward  aten::add.out" in shown


def test_files_that_cannot_be_read(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, reason in ((tmp_path / "missing.pte", "No such file or directory"), (tmp_path, "Is a directory")):
        assert main(["inspect", str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"etcuda: inspect: {path}: expected a .pte that can be read, got: {reason}.")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "expected an ExecuTorch .pte"),
        (lambda data: b"\x7fELF" + b"program", "expected an ExecuTorch .pte"),
        (lambda data: data[: len(data) // 2], "truncated or damaged"),
        (lambda data: data[:8] + bytes(len(data) - 8), "truncated or damaged"),
        (lambda data: data[:8] + b"\xff" * (len(data) - 8), "truncated or damaged"),
        (lambda data: data.replace(b"\x7fELF", b"\x7fELG"), "does not match its SHA-256"),
        (lambda data: data.replace(b"ETCD", b"ETCX", 1), "does not match its SHA-256"),
    ],
    ids=["empty", "foreign", "half", "zeros", "ones", "code", "description"],
)
def test_damage_is_an_error(
    damage: object, message: str, program: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(damage)
    path = tmp_path / "damaged.pte"
    path.write_bytes(damage(program.read_bytes()))
    assert main(["inspect", str(path)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"etcuda: inspect: {path}: ")
    assert message in error

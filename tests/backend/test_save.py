from __future__ import annotations

import os
import pathlib

import pytest
import torch
from executorch.exir import ExecutorchProgramManager, to_edge

from etcuda import EtcudaError, save_program


@pytest.fixture(scope="module")
def program() -> ExecutorchProgramManager:
    return to_edge(torch.export.export(torch.nn.Linear(4, 3), (torch.randn(2, 4),))).to_executorch()


def test_writes_the_program_and_nothing_else(program: ExecutorchProgramManager, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(b"old")
    assert save_program(program, path) == [path]
    assert path.read_bytes() == program.buffer
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folder(program: ExecutorchProgramManager, tmp_path: pathlib.Path) -> None:
    with pytest.raises(EtcudaError, match=r"model\.pte: expected a path that can be written.*No such file"):
        save_program(program, tmp_path / "no" / "model.pte")


def test_a_folder_is_no_path_for_a_file(program: ExecutorchProgramManager, tmp_path: pathlib.Path) -> None:
    with pytest.raises(OSError, match="got a folder"):
        save_program(program, tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_failed_write_keeps_the_old_file(
    program: ExecutorchProgramManager, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(b"old")

    def fill(_file: object) -> None:
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    monkeypatch.setattr(program, "write_to_file", fill)
    with pytest.raises(EtcudaError, match="No space left"):
        save_program(program, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]

"""Folders of files that are being written: those of processes that were killed go, all others stay."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time

import pytest

import etcuda.scratch
from etcuda.scratch import scratch_folder

_WRITES = """
import pathlib, sys
from etcuda.scratch import scratch_folder
with scratch_folder(pathlib.Path(sys.argv[1])) as folder:
    (folder / "new").write_bytes(b"half")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_a_dead_processs_folder_goes_and_a_living_ones_stays(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-c", _WRITES, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        theirs = pathlib.Path(child.stdout.readline().strip())
        with scratch_folder(tmp_path) as mine, scratch_folder(tmp_path) as another:
            assert {*tmp_path.iterdir()} == {theirs, mine, another}
        assert (theirs / "new").read_bytes() == b"half"
        child.kill()
    assert theirs.exists()
    with scratch_folder(tmp_path) as mine:
        assert [*tmp_path.iterdir()] == [mine]
    assert not [*tmp_path.iterdir()]


def test_folders_of_other_machines_stay_for_a_day(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(etcuda.scratch.socket, "gethostname", lambda: "elsewhere")
        # As if it were killed.
        elsewhere.setattr(etcuda.scratch.shutil, "rmtree", lambda *_, **__: None)
        with scratch_folder(tmp_path) as theirs:
            (theirs / "new").write_bytes(b"half")
    with scratch_folder(tmp_path):
        assert theirs.exists()
    before = time.time() - 25 * 3600
    os.utime(theirs, (before, before))
    with scratch_folder(tmp_path):
        assert theirs.exists(), "a file in it was written since"
    os.utime(theirs / "new", (before, before))
    with scratch_folder(tmp_path):
        assert not theirs.exists()


def test_what_is_no_folder_of_ours_stays(tmp_path: pathlib.Path) -> None:
    with scratch_folder(tmp_path) as mine:
        name = mine.name
    (tmp_path / "precious").mkdir()
    (tmp_path / name).symlink_to(tmp_path / "precious")
    (tmp_path / f"{name}2").write_bytes(b"a file")
    (tmp_path / ".etcuda-else").mkdir()
    there = {*tmp_path.iterdir()}
    with scratch_folder(tmp_path):
        pass
    assert {*tmp_path.iterdir()} == there

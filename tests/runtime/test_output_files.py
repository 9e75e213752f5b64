"""Where the runner's output goes: links and modes are kept, and what is no file is not replaced."""

from __future__ import annotations

import os
import pathlib
import stat
import struct

import pytest

from .conftest import MakeProgram, run

ONES = struct.pack("<8f", 1, 2, 3, 4, 5, 6, 7, 8)


def test_links_and_modes(runner: pathlib.Path, make_program: MakeProgram, tmp_path: pathlib.Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    done = run(runner, "--model_path", make_program(), "--output_file", tmp_path / "link")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == ONES
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o640
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("folder", "it is a folder or a device, not a file"),
        ("fifo", "it is a folder or a device, not a file"),
        ("device", "it is a folder or a device, not a file"),
        ("dangling", "it is a link to a file that does not exist"),
        ("loop", "Too many levels of symbolic links"),
    ],
)
def test_what_is_no_file(
    runner: pathlib.Path, make_program: MakeProgram, tmp_path: pathlib.Path, kind: str, words: str
) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    elif kind == "fifo":
        os.mkfifo(out)
    else:
        out.symlink_to({"device": "/dev/null", "dangling": "nothing", "loop": "out"}[kind])
    before = out.lstat()
    done = run(runner, "--model_path", make_program(), "--output_file", out)
    assert done.returncode == 5, done.stderr
    assert words in done.stderr
    assert out.lstat() == before
    assert list(tmp_path.iterdir()) == [out]
    assert pathlib.Path("/dev/null").is_char_device()

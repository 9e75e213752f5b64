"""Replacing files whole, for whatever writes them."""

from __future__ import annotations

import fcntl
import os
import pathlib
import stat
import threading

import pytest
import torch

import etcuda
from etcuda.errors import SaveError
from etcuda.files import replacing


def test_weights_are_written_through_a_link(tmp_path: pathlib.Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to("real")
    etcuda.save_weights({"w": torch.ones(2)}, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert torch.equal(etcuda.load_weights(tmp_path / "real")["w"], torch.ones(2))
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o600
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SaveError, match="fifo: expected the path of a file, got a FIFO"):
        etcuda.save_weights({"w": torch.ones(2)}, tmp_path / "fifo")


def test_nothing_is_left_of_a_block_that_fails(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with replacing([path]) as (written,):
            written.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_take_their_places_together(tmp_path: pathlib.Path) -> None:
    """Another process that has the folder's lock is waited for, though both may write at once."""
    path, ended = tmp_path / "file", threading.Event()

    def replace() -> None:
        with replacing([path]) as (written,):
            written.write_bytes(b"new")
            began.set()
        ended.set()

    began, other = threading.Event(), os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    thread = threading.Thread(target=replace)
    thread.start()
    assert began.wait(60)
    assert not ended.wait(0.2)
    assert not path.exists()
    os.close(other)
    thread.join(60)
    assert path.read_bytes() == b"new"


def test_without_hard_links(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"old")
    second.write_bytes(b"old")

    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    replace = pathlib.Path.replace

    def fail(self: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
        if target == second:
            raise PermissionError(1, "Operation not permitted")
        return replace(self, target)

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(pathlib.Path, "replace", fail)

    def write() -> None:
        with replacing([first, second]) as written:
            for each in written:
                each.write_bytes(b"new")

    with pytest.raises(PermissionError):
        write()
    assert first.read_bytes() == second.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2

"""Files that are replaced whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence

from etcuda.errors import SaveError
from etcuda.scratch import scratch_folder

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


def real_file(path: str | os.PathLike[str]) -> pathlib.Path:
    """The file behind ``path`` and its links, which need not exist yet.

    Raises:
        SaveError: it is something else than a file, such as a folder or a device.
        OSError: the path cannot be followed.
    """
    if "\0" in os.fsdecode(path):
        raise SaveError(f"{os.fspath(path)!a}: expected the path of a file, got one with a null character in it.")
    real = pathlib.Path(os.path.realpath(path))
    try:
        mode = real.stat().st_mode
    except FileNotFoundError:
        return real
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise SaveError(f"{os.fspath(path)}: expected the path of a file, got {kind}. Give the name of a file.")
    return real


@contextlib.contextmanager
def saving(target: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an ``OSError`` into a ``SaveError`` that names ``target``."""
    try:
        yield
    except SaveError:
        raise
    except OSError as error:
        raise SaveError(
            f"{os.fspath(target)}: expected a path that can be written, got: {error.strerror or error}. "
            "Check that the folder exists, that you may write there, and that there is room."
        ) from error


@contextlib.contextmanager
def replacing(paths: Sequence[pathlib.Path]) -> Iterator[list[pathlib.Path]]:
    """Temporary paths beside ``paths``, to be written in the block; at its end the files there take their places, with
    the mode of the file that they replace. If the block or a step after it fails, all files are what they were. Of two
    processes that replace the same files, the one that ends last has all of them.

    A link is followed: the file behind it is replaced. Of a file with several names (hard links) only the one that is
    given becomes the new file.

    Raises:
        SaveError: one of ``paths`` is no file, or two are the same one.
        OSError: a file cannot be written.
    """
    reals = [real_file(path) for path in paths]
    for place, real in enumerate(reals):
        if real in reals[:place]:
            raise SaveError(
                f"{paths[place]}: expected a file for it alone, got the file of {paths[reals.index(real)].name} too. "
                "Give them different names."
            )
    with contextlib.ExitStack() as stack:
        written = [stack.enter_context(scratch_folder(real.parent)) / "new" for real in reals]
        yield written
        for new, real in zip(written, reals, strict=True):
            _take_over(new, real)
        folders_of = {real.parent for real in reals}
        with _alone(folders_of):
            _install(written, reals)
        for folder in folders_of:
            _sync(folder)


def write_at(file: int, offset: int, chunks: Iterable[memoryview]) -> int:
    """Writes bytes to an open file from ``offset`` on; returns where they end."""
    for chunk in chunks:
        while chunk:
            done = os.pwrite(file, chunk, offset)
            chunk, offset = chunk[done:], offset + done
    return offset


def _take_over(new: pathlib.Path, real: pathlib.Path) -> None:
    """Gives a new file the owner and mode of the old one, and waits until it is on the disk."""
    try:
        old = real.stat()
    except FileNotFoundError:
        pass
    else:
        # Only root may give a file away. Otherwise it belongs to its writer, as any new file does.
        with contextlib.suppress(PermissionError):
            os.chown(new, old.st_uid, old.st_gid)
        new.chmod(stat.S_IMODE(old.st_mode))
    _sync(new)


@contextlib.contextmanager
def _alone(folders: Iterable[pathlib.Path]) -> Iterator[None]:
    """No other process takes files' places in these folders meanwhile; where a file system has no locks, it may."""
    with contextlib.ExitStack() as stack:
        for folder in sorted(folders):
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _install(written: list[pathlib.Path], reals: list[pathlib.Path]) -> None:
    done: list[tuple[pathlib.Path, pathlib.Path]] = []
    try:
        for new, real in zip(written, reals, strict=True):
            kept = new.with_name("old")
            # For the case that a later one cannot be replaced.
            if real.exists() and real != reals[-1]:
                _keep(real, kept)
            done.append((kept, real))
            new.replace(real)
    except BaseException:
        for kept, real in reversed(done):
            if kept.exists():
                kept.replace(real)
            elif real != reals[-1]:
                real.unlink(missing_ok=True)
        raise


def _keep(real: pathlib.Path, kept: pathlib.Path) -> None:
    try:
        os.link(real, kept)
    except OSError:
        # A file system without hard links, or a file of somebody else.
        shutil.copy2(real, kept)


def _sync(path: pathlib.Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # What some file systems say about folders.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)

"""Folders of files that are being written, beside their place; those of dead processes are cleared away."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator

# Names of folders beside files of the user, and among temporary files.
HIDDEN, TEMPORARY = ".etcuda-tmp-", "etcuda-tmp-"
# Seconds after which a folder that nobody locks and nothing was written to is dead whichever machine made it.
_LONG_AGO = 24 * 3600


@contextlib.contextmanager
def scratch_folder(parent: pathlib.Path, prefix: str = HIDDEN) -> Iterator[pathlib.Path]:
    """A folder in ``parent`` that is gone at the end of the block; its name begins with ``prefix``.

    A process that is killed leaves its folder behind. So each holds a lock on its own as long as it lives, and whoever
    makes the next one of the prefix in ``parent`` clears away those that nobody locks. Some shared file systems keep
    locks to each machine: folders of other machines stay for a day.

    Raises:
        OSError: ``parent`` cannot be written to.
    """
    with contextlib.suppress(OSError):
        _clear(parent, prefix)
    path, handle = _locked_folder(parent, prefix)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def _locked_folder(parent: pathlib.Path, prefix: str) -> tuple[pathlib.Path, int]:
    """A new folder and the open file that holds its lock."""
    while True:
        path = pathlib.Path(tempfile.mkdtemp(dir=parent, prefix=f"{prefix}{_machine()}-"))
        handle = os.open(path, os.O_RDONLY)
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        # Until it had its lock, another process may have taken it for a dead one's.
        if path.exists():
            return path, handle
        os.close(handle)


def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _clear(parent: pathlib.Path, prefix: str) -> None:
    for path in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                # Fails where a living process has it, and where there are no locks.
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.name.startswith(f"{prefix}{_machine()}-") or _last_written(path) < time.time() - _LONG_AGO:
                    shutil.rmtree(path)
            finally:
                os.close(handle)


def _last_written(folder: pathlib.Path) -> float:
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))

"""Objects of sources that are the same in many images, compiled once and kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Sequence

from etcuda.backend.precompiled import content_of, dependencies, digest_of

# One for each device, level of processor and release of torch that a user may go between.
MOST_KEPT = 8


class KeptObjects:
    """Objects in ``folder``, which processes may share; without a folder, or without GCC, none is kept.

    An object is used if it, and every file that it was made from, is as it was. A full disk, or a folder that is not
    ours to write to, keeps nothing and is no error.

    Args:
        gcc: of ``identity_of_gcc``; asking takes a run of the compiler.
        folder: where they are kept.
    """

    def __init__(self, gcc: list[str] | None, folder: pathlib.Path | None) -> None:
        self._folder = folder
        self._gcc = gcc

    def fetch(self, source: str, flags: Sequence[str], target: pathlib.Path) -> bool:
        """Copies to ``target`` the object of ``source`` compiled with ``flags``, if it is kept and sound."""
        kept = self._path(source, flags)
        if kept is None:
            return False
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads(_record(kept).read_text())
            shutil.copyfile(kept, target)
            if record["content"] == content_of(record["files"]) and record["sha256"] == digest_of(target):
                os.utime(_record(kept))
                return True
        return False

    def keep(self, source: str, flags: Sequence[str], made: pathlib.Path, needed: pathlib.Path) -> None:
        """Keeps the object ``made``.

        Args:
            source: what was compiled.
            flags: those that the object depends on.
            made: the object.
            needed: the rule for ``make`` that the compiler wrote of the files that it read, the source first.
        """
        kept = self._path(source, flags)
        if kept is None:
            return
        new = kept.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            try:
                kept.parent.mkdir(parents=True, exist_ok=True)
                files = dependencies(needed.read_text())
                record = {"sha256": digest_of(made), "files": files, "content": content_of(files)}
                shutil.copyfile(made, new)
                # Others see an object with its record, or one with the record of another, which they do not use.
                new.replace(kept)
                new.write_text(json.dumps(record))
                new.replace(_record(kept))
            finally:
                new.unlink(missing_ok=True)
            records = sorted(kept.parent.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
            for old in records[MOST_KEPT:]:
                old.unlink(missing_ok=True)
                old.with_suffix(".o").unlink(missing_ok=True)

    def _path(self, source: str, flags: Sequence[str]) -> pathlib.Path | None:
        if self._folder is None or self._gcc is None:
            return None
        key = hashlib.sha256(json.dumps([self._gcc, list(flags), source]).encode()).hexdigest()[:32]
        return self._folder / f"{key}.o"


def _record(kept: pathlib.Path) -> pathlib.Path:
    return kept.with_suffix(".json")

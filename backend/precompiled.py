"""The headers that generated sources begin with, compiled once and kept: GCC's precompiled headers.

Parsing them takes longer than compiling what follows. An image has the same bytes with and without.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence

# Of 40 to 150 MB each: three for the host, one for a GPU, and one to spare.
MOST_COMPILED = 5
MOST_NOTED = 32

# GCC looks for memory to free whenever it has taken some more, again and again in sources of this size.
_COLLECT_SELDOM = ("--param", "ggc-min-expand=1000", "--param", "ggc-min-heapsize=524288")
# Includes, comments and empty lines.
_BEGINNING = re.compile(r"(?:[ \t]*(?://[^\n]*|#include[ \t]*<[^>\n]+>[ \t]*)?\n)*")
# Of clang and what is made from it, the first macro is a number.
_CLANG = re.compile(r'\d+ ".*"')
_INCLUDE = re.compile(r"^[ \t]*(#include.*?)[ \t]*$", re.MULTILINE)


class PrecompiledHeaders:
    """Precompiled headers in ``folder``, which processes may share; without a folder there are none.

    The first time that headers are wanted they are only noted, for making them takes as long as compiling a source.
    A header is used if it, and every file that it was made from, is as it was.
    """

    def __init__(self, compiler: Sequence[str], folder: pathlib.Path | None) -> None:
        self._compiler = list(compiler)
        self._folder = folder
        asked = ask(self._compiler)
        self._gcc = None if asked is None else identity_from(self._compiler, asked)
        self.is_clang = asked is not None and _CLANG.fullmatch(asked.strip()) is not None

    @property
    def identity(self) -> list[str] | None:
        """What tells this compiler from others; ``None`` if it is no GCC."""
        return self._gcc

    def flags(self, source: str, flags: Sequence[str]) -> list[str]:
        """Flags with which a source is compiled faster, to the same bytes.

        Args:
            source: what will be compiled.
            flags: those of its compilation that headers depend on.
        """
        if self._gcc is None:
            return []
        header = self._header(source, flags)
        return [*_COLLECT_SELDOM, *(["-include", str(header)] if header else [])]

    def discard(self, used: Sequence[str]) -> None:
        """Forgets the header that is in flags with which a compilation failed."""
        if "-include" in used:
            _remove(pathlib.Path(used[used.index("-include") + 1]))

    def _header(self, source: str, flags: Sequence[str]) -> pathlib.Path | None:
        beginning = _BEGINNING.match(source)
        text = "".join(line + "\n" for line in _INCLUDE.findall(beginning[0] if beginning else ""))
        if self._folder is None or not text:
            return None
        key = hashlib.sha256(json.dumps([self._gcc, list(flags), text]).encode()).hexdigest()[:32]
        header = self._folder / f"{key}.h"
        # A full disk, or a folder that is not ours to write to, is no reason to fail.
        with contextlib.suppress(OSError):
            if _holds(header, text) and _is_sound(header):
                os.utime(_record(header))
                return header
            if not _holds(header, text):
                self._folder.mkdir(parents=True, exist_ok=True)
                _write(header, text)
                return None
            with _alone(self._folder) as alone:
                if alone and self._make(header, flags):
                    return header
        return None

    def _make(self, header: pathlib.Path, flags: Sequence[str]) -> bool:
        made = header.parent / "made"
        # Another process may have been ended while it was at it.
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        compiled, needed, record = made / "header.gch", made / "needed.d", made / "record.json"
        command = [*self._compiler, *flags, *_COLLECT_SELDOM, "-MD", "-MF", str(needed), "-MT", "made"]
        command += ["-x", "c++-header", str(header), "-o", str(compiled)]
        try:
            if subprocess.run(command, cwd=made, capture_output=True, check=False).returncode:
                return False
            files = dependencies(needed.read_text())
            record.write_text(json.dumps({"sha256": digest_of(compiled), "files": files, "content": content_of(files)}))
            _record(header).unlink(missing_ok=True)
            compiled.replace(_compiled(header))
            record.replace(_record(header))
        finally:
            shutil.rmtree(made, ignore_errors=True)
        _remove_all_but(MOST_COMPILED, header.parent.glob("*.json"))
        _remove_all_but(MOST_NOTED, header.parent.glob("*.h"))
        return True


def identity_of_gcc(compiler: Sequence[str]) -> list[str] | None:
    """What tells one GCC from another; ``None`` if the compiler is none."""
    asked = ask(compiler)
    return None if asked is None else identity_from(compiler, asked)


def identity_from(compiler: Sequence[str], asked: str) -> list[str] | None:
    """What tells one GCC from another, from what ``ask`` returned; ``None`` if the compiler is none."""
    # Other compilers define what GCC defines; of these, the macros would be their values.
    if not re.fullmatch(r'__clang__ "\d[^"]*"', asked.strip()):
        return None
    found = [pathlib.Path(path).resolve() for word in compiler if (path := shutil.which(word))]
    return [*compiler, asked, *(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in found)]


def ask(compiler: Sequence[str]) -> str | None:
    """What the macros ``__clang__`` and ``__VERSION__`` are to a compiler; ``None`` if it cannot be asked."""
    command = [*compiler, "-E", "-P", "-x", "c++", "-"]
    try:
        done = subprocess.run(command, input="__clang__ __VERSION__", capture_output=True, text=True, check=False)
    except OSError:
        return None
    return None if done.returncode else done.stdout


def _compiled(header: pathlib.Path) -> pathlib.Path:
    return header.with_suffix(".h.gch")


def _record(header: pathlib.Path) -> pathlib.Path:
    return header.with_suffix(".json")


def _holds(header: pathlib.Path, text: str) -> bool:
    return header.exists() and header.read_bytes() == text.encode()


def _write(header: pathlib.Path, text: str) -> None:
    # Other processes see all of it or nothing.
    new = header.with_suffix(f".{os.getpid()}")
    try:
        new.write_text(text)
        new.replace(header)
    finally:
        new.unlink(missing_ok=True)


def _is_sound(header: pathlib.Path) -> bool:
    try:
        record = json.loads(_record(header).read_text())
        return bool(
            record["content"] == content_of(record["files"]) and record["sha256"] == digest_of(_compiled(header))
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def dependencies(rule: str) -> list[str]:
    """The files that a rule for ``make`` names after its target and the source itself."""
    # The target, and the header itself, come first; a space in a name has a backslash before it.
    words = re.split(r"(?<!\\)\s+", rule.replace("\\\n", " ").strip())
    return [word.replace("\\ ", " ").replace("\\#", "#").replace("$$", "$") for word in words[2:]]


def content_of(files: Sequence[str]) -> str:
    """One SHA-256, in hexadecimal, of the content of all files.

    Raises:
        OSError: one of them cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(pathlib.Path(file).read_bytes()).digest())
    return digest.hexdigest()


def digest_of(path: pathlib.Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[bool]:
    """Whether no other process makes a header in the folder meanwhile."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _remove(header: pathlib.Path) -> None:
    for path in (_record(header), _compiled(header), header):
        path.unlink(missing_ok=True)


def _remove_all_but(count: int, paths: Iterator[pathlib.Path]) -> None:
    newest_first = sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest_first[count:]:
        _remove(path.with_suffix(".h"))

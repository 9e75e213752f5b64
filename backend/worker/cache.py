"""Compiled delegates, kept between exports: what was compiled before is not compiled again.

One file an entry. A reader takes an entry only if its digest is that of its bytes and it is the entry asked for; any
other is as none. Files are replaced whole, so that processes may share a folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import struct
import sys
import tempfile
import zipfile

from etcuda.backend.image import find_compiler
from etcuda.backend.precompiled import identity_of_gcc
from etcuda.backend.worker.job import PROGRAM, REQUEST, JobResult
from etcuda.errors import CompileError

log = logging.getLogger(__name__)

_MAGIC = b"ETCUDAC2"
_HEADER = struct.Struct("<8s32s32sQ")
# Options that decide where things lie and what is shown, not what is compiled.
_OF_NO_EFFECT = ("cache_dir", "compile_cache_gib", "progress", "ptd_name", "reroll", "timeout_s", "weights")
_PACKAGES = ("torch", "triton", "sympy", "numpy", "torchao")
# Variables that PyTorch's and Triton's compilers read.
_VARIABLES = ("INDUCTOR_", "TORCHINDUCTOR_", "TRITON_")
_SOURCES = frozenset({".cpp", ".cu", ".cuh", ".h", ".json", ".py"})


class CompileCache:
    """Entries in ``folder``, together at most ``limit`` bytes: those that were not used for longest go first."""

    def __init__(self, folder: pathlib.Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit

    def get(self, key: str) -> JobResult | None:
        """The result of an earlier compilation; ``None`` if there is none, or not as it was written."""
        path = self._folder / key
        try:
            data = path.read_bytes()
        except OSError:
            return None
        result = _unpack(key, data)
        if result is None:
            log.warning("%s is damaged and is not used; the graph is compiled again.", path)
        else:
            with contextlib.suppress(OSError):
                os.utime(path)
        return result

    def put(self, key: str, result: JobResult) -> None:
        """Keeps a result. A folder that cannot be written to, or a full disk, is no reason to fail."""
        data = _pack(key, result)
        if len(data) > self._limit:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".new-", delete=False) as new:
                try:
                    new.write(data)
                    new.flush()
                    os.replace(new.name, self._folder / key)
                except BaseException:
                    os.unlink(new.name)
                    raise
            self._remove_oldest()
        except OSError as error:
            log.info("the compiled graph is not kept for later exports: %s", error)

    def _remove_oldest(self) -> None:
        entries = []
        for path in self._folder.iterdir():
            # Another process may remove it meanwhile.
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                entries.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._limit:
                break
            path.unlink(missing_ok=True)
            total -= size


def job_key(folder: pathlib.Path) -> str | None:
    """Names what compiling the job in ``folder`` gives: its graph, options, target, and all that compiles it.

    ``None`` if the C++ compiler cannot be told from others.
    """
    try:
        compiler = identity_of_gcc(find_compiler())
    except CompileError:
        return None
    if compiler is None:
        return None
    request = json.loads((folder / REQUEST).read_text())
    options = {name: value for name, value in request["options"].items() if name not in _OF_NO_EFFECT}
    parts = {
        "graph": _archive_digest(folder / PROGRAM),
        "target": request["target"],
        "options": options,
        "tied": request["tied"],
        "sizes": request["sizes"],
        "is_part": request["is_part"],
        "compiler": compiler,
        "variables": {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)},
        "versions": _versions(),
        "sources": _sources_digest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _pack(key: str, result: JobResult) -> bytes:
    description = json.dumps(result.described()).encode()
    body = struct.pack("<Q", len(description)) + description + result.image
    return _HEADER.pack(_MAGIC, bytes.fromhex(key), hashlib.sha256(body).digest(), len(body)) + body


def _unpack(key: str, data: bytes) -> JobResult | None:
    body = data[_HEADER.size :]
    if data[: _HEADER.size] != _HEADER.pack(_MAGIC, bytes.fromhex(key), hashlib.sha256(body).digest(), len(body)):
        return None
    (size,) = struct.unpack_from("<Q", body)
    return JobResult.of(body[8 + size :], json.loads(body[8 : 8 + size]))


def _archive_digest(path: pathlib.Path) -> str:
    """Of the names and contents of its files, without what tells one archive from another of the same content."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            # An archive's first folder is named after its file.
            inside = name.partition("/")[2]
            if inside == ".data/serialization_id":
                continue
            content = archive.read(name)
            digest.update(struct.pack("<QQ", len(inside.encode()), len(content)) + inside.encode() + content)
    return digest.hexdigest()


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": sys.version, "machine": platform.machine()}
    for package in importlib.metadata.distributions():
        name = package.name
        # The GPU's compilers come in packages of their own.
        if name in _PACKAGES or name.startswith("nvidia-"):
            found[name] = package.version
    import torch

    # Which build of a version it is.
    found["torch build"] = f"{torch.__version__} {torch.version.git_version}"
    return found


@functools.cache
def _sources_digest() -> str:
    """Of etcuda itself: whatever changes there may change what is compiled."""
    import etcuda

    root = pathlib.Path(etcuda.__path__[0])
    digest = hashlib.sha256()
    # Parts of a checkout are links to folders.
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if name not in ("__pycache__", "lib", "bin"))
        for name in sorted(files):
            path = pathlib.Path(folder, name)
            if path.suffix in _SOURCES:
                digest.update(f"{path.relative_to(root)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()

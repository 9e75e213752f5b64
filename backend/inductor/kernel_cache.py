"""Triton's cache of compiled kernels, with entries that are compared with their digests before they are used.

Triton takes what it finds: a damaged kernel would go into the next program.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import tempfile

from triton import knobs
from triton.runtime.cache import FileCacheManager


class VerifiedCache(FileCacheManager):  # type: ignore[misc]
    """Files of one compilation, in a folder of their own.

    An entry counts if the record of its files is whole, is the record of this compilation, and every file has the
    digest that stands there. Any other entry is written again. Each file is replaced whole.

    A folder that cannot be written to, or a full disk, is no reason to fail: what is compiled then lies in a temporary
    folder.
    """

    def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
        try:
            super().__init__(key, override, dump)
        except OSError:
            self._move_away()

    def put(self, data: object, filename: str, binary: bool = True) -> str:
        """Writes a file; returns its path."""
        try:
            return str(super().put(data, filename, binary))
        except OSError:
            self._move_away()
            return str(super().put(data, filename, binary))

    def put_group(self, filename: str, group: dict[str, str]) -> str:
        """Writes the record of the files that belong together, by name."""
        files = {name: [path, _digest(pathlib.Path(path))] for name, path in group.items()}
        record = json.dumps({"key": self.key, "files": files})
        return self.put(f"{hashlib.sha256(record.encode()).hexdigest()}\n{record}", _record(filename))

    def get_group(self, filename: str) -> dict[str, str] | None:
        """The files that belong together, by name; ``None`` if one of them is not what was written."""
        try:
            digest, _, record = pathlib.Path(self._make_path(_record(filename))).read_text().partition("\n")
            if hashlib.sha256(record.encode()).hexdigest() != digest:
                return None
            value = json.loads(record)
            whole = value["key"] == self.key and all(
                _digest(pathlib.Path(path)) == expected for path, expected in value["files"].values()
            )
        except (OSError, ValueError, KeyError):
            return None
        return {name: path for name, (path, _) in value["files"].items()} if whole else None

    def _move_away(self) -> None:
        self.cache_dir = tempfile.mkdtemp(prefix="kernels-")
        self.lock_path = str(pathlib.Path(self.cache_dir) / "lock")


def install() -> None:
    """Makes Triton in this process use the cache. For the compile worker alone."""
    knobs.cache.manager_class = VerifiedCache


def _record(filename: str) -> str:
    return f"__grp__{filename}"


def _digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

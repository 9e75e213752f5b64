"""The bytes of a constant, wherever they are now, read when they are hashed and when they are written."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Iterator
from typing import Any

import torch
from executorch.exir._serialize._cord import FileBackedData

from etcuda.errors import SaveError
from etcuda.passes.graph.recipes import Recipe
from etcuda.read_memory import CHUNK, read_memory

_HEAD = 64


class WeightBytes:
    """Bytes of a storage, or of a weight that is made of others by a recipe.

    Attributes:
        nbytes: how many there are.
    """

    def __init__(self, source: torch.UntypedStorage | Recipe, nbytes: int) -> None:
        self._source = source
        self.nbytes = nbytes
        self._sha256: bytes | None = None
        self._is_zero: bool | None = None
        self._head = b""

    @property
    def source(self) -> torch.UntypedStorage | Recipe:
        """Where they are, or what makes them."""
        return self._source

    def chunks(self, size: int = CHUNK) -> Iterator[memoryview]:
        """The bytes in order, in pieces of at most ``size``; each is good until the next is asked for."""
        if not isinstance(self._source, Recipe):
            yield from _chunks(self._source, 0, self.nbytes, size)
            return
        for piece in self._source.pieces():
            start = int(piece.storage_offset()) * piece.itemsize
            yield from _chunks(piece.untyped_storage(), start, piece.numel() * piece.itemsize, size)

    def read(self) -> bytes:
        """All of them, copied."""
        return b"".join(map(bytes, self.chunks()))

    def head(self, size: int) -> bytes:
        """The first ``size`` bytes, or all if there are fewer."""
        if len(self._head) < min(size, self.nbytes):
            found = b""
            for chunk in self.chunks(size):
                found += bytes(chunk[: size - len(found)])
                if len(found) == size:
                    break
            self._head = found
        return self._head[:size]

    def sha256(self) -> bytes:
        """Their digest when this was first asked for."""
        if self._sha256 is None:
            digest = hashlib.sha256()
            head = b""
            for chunk in self.chunks():
                head += bytes(chunk[: _HEAD - len(head)])
                digest.update(chunk)
            self._sha256, self._head = digest.digest(), head
        return self._sha256

    def is_zero(self) -> bool:
        """Whether all bytes were zero when this was first asked for."""
        if self._is_zero is None:
            self._is_zero = all(bytes(chunk) == bytes(len(chunk)) for chunk in self.chunks())
        return self._is_zero


class StoredWeight(FileBackedData):  # type: ignore[misc]
    """Bytes of a weight as ExecuTorch's serialisers take them: it writes them piece by piece, and keeps none.

    Writing checks that they are what the program was compiled with.

    Args:
        source: the bytes.
        name: of the weight, for messages.
    """

    def __init__(self, source: WeightBytes, name: str) -> None:
        # Not the parent's, which opens a file.
        self._bytes, self._name = source, name
        self._digest = source.sha256()

    def __len__(self) -> int:
        return self._bytes.nbytes

    def __deepcopy__(self, memo: Any) -> StoredWeight:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process has to have them.
        return bytes, (self.to_bytes(),)

    @property
    def name(self) -> str:
        """Of the weight."""
        return self._name

    @property
    def content(self) -> WeightBytes:
        """The bytes."""
        return self._bytes

    def prefix(self, size: int) -> bytes:
        """The first bytes."""
        return self._bytes.head(size)

    def sha256(self) -> bytes:
        """Their digest when the program was compiled."""
        return self._digest

    def to_bytes(self) -> bytes:
        """All of them, copied.

        Raises:
            SaveError: they are not what they were.
        """
        out = io.BytesIO()
        self.write_to_file(out)
        return out.getvalue()

    def write_to_file(self, outfile: io.BufferedIOBase) -> None:
        """Writes them to an open file; inside ``leaving_gaps`` it leaves a gap of their size.

        Raises:
            SaveError: they are not what they were. What was written is then not to be used.
        """
        gaps = _GAPS.get()
        if gaps is not None:
            gaps.append(Gap(pathlib.Path(outfile.name), outfile.tell(), self))  # type: ignore[attr-defined]
            outfile.seek(len(self), io.SEEK_CUR)
            # The last thing in a file may be a gap.
            outfile.truncate(outfile.tell())
            return
        for chunk in self.checked():
            outfile.write(chunk)

    def checked(self) -> Iterator[memoryview]:
        """The bytes in order, in pieces; each is good until the next is asked for.

        Raises:
            SaveError: behind the last, if they are not what they were.
        """
        digest = hashlib.sha256()
        for chunk in self._bytes.chunks():
            digest.update(chunk)
            yield chunk
        if digest.digest() != self._digest:
            raise SaveError(
                f"the bytes of {self._name}: expected SHA-256 {self._digest.hex()[:12]}, as when the program was "
                f"lowered, got {digest.hexdigest()[:12]}. Weights are read when the program is saved: leave the model, "
                "and the file that its weights are mapped from, as they are until then, or lower it again."
            )

    def close(self) -> None:
        """Nothing is open."""


@dataclasses.dataclass(frozen=True)
class Gap:
    """Where a weight belongs.

    Attributes:
        path: of the file.
        offset: bytes from its beginning.
        weight: of whose bytes there is room.
    """

    path: pathlib.Path
    offset: int
    weight: StoredWeight


_GAPS: contextvars.ContextVar[list[Gap] | None] = contextvars.ContextVar("etcuda_gaps", default=None)


@contextlib.contextmanager
def leaving_gaps() -> Iterator[list[Gap]]:
    """Weights that are written to files inside become gaps, which the list then has in order."""
    gaps: list[Gap] = []
    token = _GAPS.set(gaps)
    try:
        yield gaps
    finally:
        _GAPS.reset(token)


def _chunks(storage: torch.UntypedStorage, start: int, nbytes: int, size: int) -> Iterator[memoryview]:
    if storage.device.type == "cpu":
        yield from read_memory(storage.data_ptr() + start, nbytes, size) if nbytes else ()
        return
    flat = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    for first in range(start, start + nbytes, size):
        yield memoryview(flat[first : min(first + size, start + nbytes)].cpu().numpy().tobytes())

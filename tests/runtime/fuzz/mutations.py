"""Mutated programs: what is changed, and whether it is etcuda's to notice."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import random
import struct
from collections.abc import Iterator

from executorch.exir._serialize._program import deserialize_pte_binary

from etcuda.backend.blob import MAGIC, read_blob

_HEADER = 64
_VALUES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 2**63, 2**64 - 1)
_CASE, _EDIT = struct.Struct("<iqqi"), struct.Struct("<iqi")


@dataclasses.dataclass(frozen=True)
class Span:
    """Bytes of a file, 0 for the ``.pte`` and 1 for the ``.ptd``, and what they are."""

    file: int
    start: int
    end: int
    what: str


@dataclasses.dataclass(frozen=True)
class Seed:
    """A program, its external weights or nothing, and where etcuda's own bytes are."""

    name: str
    pte: bytes
    ptd: bytes
    spans: tuple[Span, ...]

    @classmethod
    def read(cls, pte: pathlib.Path, ptd: pathlib.Path | None = None) -> Seed:
        """A program from its files."""
        data, external = pte.read_bytes(), ptd.read_bytes() if ptd else b""
        spans = []
        start = data.find(MAGIC)
        while start >= 0:
            payload = struct.unpack_from("<Q", data, start + 16)[0]
            delegate = read_blob(data[start:])
            spans.append(Span(0, start, start + _HEADER + payload, "description"))
            spans += [
                Span(0, start + image.offset, start + image.offset + image.nbytes, "image") for image in delegate.images
            ]
            start = data.find(MAGIC, start + _HEADER)
        named = deserialize_pte_binary(data).named_data
        for entry in named.buffers if named else []:
            content = bytes(getattr(entry, "buffer", entry))
            # Its place in memory is all that counts of the entry that identifies a program.
            if len(content) > 1:
                place = data.index(content)
                spans.append(Span(0, place, place + len(content), "weights"))
        if external:
            spans.append(Span(1, 0, len(external), "external weights"))
        return cls(pte.stem, data, external, tuple(spans))


@dataclasses.dataclass(frozen=True)
class Edit:
    """Bytes that replace others."""

    file: int
    offset: int
    data: bytes


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A changed program.

    Attributes:
        seed: index of the program.
        kind: what was done, and where.
        edits: in order.
        lengths: of the files, or -1 where they keep theirs.
        may_change: whether another result is no fault: the bytes are not etcuda's, or the hash was mended.
    """

    seed: int
    kind: str
    edits: tuple[Edit, ...]
    lengths: tuple[int, int] = (-1, -1)
    may_change: bool = False

    def pack(self) -> bytes:
        """As ``fuzz_programs`` reads it."""
        edits = b"".join(_EDIT.pack(each.file, each.offset, len(each.data)) + each.data for each in self.edits)
        return _CASE.pack(self.seed, *self.lengths, len(self.edits)) + edits

    def files(self, seed: Seed) -> tuple[bytes, bytes]:
        """The changed files."""
        files = [bytearray(seed.pte), bytearray(seed.ptd)]
        for edit in self.edits:
            room = max(0, len(files[edit.file]) - edit.offset)
            files[edit.file][edit.offset : edit.offset + len(edit.data)] = edit.data[:room]
        for place, length in enumerate(self.lengths):
            if length >= 0:
                del files[place][length:]
        return bytes(files[0]), bytes(files[1])


def mutants(seeds: list[Seed], count: int, seed: int) -> Iterator[Mutant]:
    """``count`` mutants, the same for the same ``seed``."""
    random_numbers = random.Random(seed)
    while count > 0:
        mutant = _mutant(seeds, random_numbers)
        base = seeds[mutant.seed]
        if mutant.files(base) != (base.pte, base.ptd):
            yield mutant
            count -= 1


def _mutant(seeds: list[Seed], chance: random.Random) -> Mutant:
    index = chance.randrange(len(seeds))
    seed = seeds[index]
    how = chance.random()
    if how < 0.08:
        file = chance.randrange(2) if seed.ptd else 0
        length = chance.randrange(len((seed.pte, seed.ptd)[file]))
        return Mutant(index, "truncated", (), (-1, length) if file else (length, -1))
    if how < 0.24:
        return _mended(index, seed, chance)
    # Most of a file is one image: each kind of bytes gets its share.
    kinds = sorted({span.what for span in seed.spans})
    if how < 0.44:
        span = Span(0, 0, len(seed.pte), "the program")
        if seed.ptd and chance.random() < 0.5:
            # The index of a .ptd stands at its begin.
            span = Span(1, 0, min(len(seed.ptd), 1024), "external weights")
        elif chance.random() < 0.7:
            span = Span(0, 0, min(len(seed.pte), 8192), "the program")
    else:
        what = chance.choice(kinds)
        span = chance.choice([each for each in seed.spans if each.what == what])
    kind, edits = _edits(seeds, seed, span, chance)
    touched = [_owner(seed, edit) for edit in edits]
    return Mutant(index, f"{kind}: {span.what}", edits, may_change=not any(touched))


def _edits(seeds: list[Seed], seed: Seed, span: Span, chance: random.Random) -> tuple[str, tuple[Edit, ...]]:
    data = (seed.pte, seed.ptd)[span.file]
    size = span.end - span.start
    at = span.start + chance.randrange(size)
    how = chance.randrange(4)
    if how == 0:
        places = [span.start + chance.randrange(size) for _ in range(chance.choice((1, 1, 1, 2, 8)))]
        return "bits", tuple(
            Edit(span.file, place, bytes([data[place] ^ 1 << chance.randrange(8)])) for place in dict.fromkeys(places)
        )
    if how == 1:
        width = chance.choice((1, 2, 4, 8))
        value = chance.choice(_VALUES) if chance.random() < 0.7 else chance.getrandbits(64)
        at = max(0, min(at - at % width, span.end - width))
        return "field", (Edit(span.file, at, (value % 256**width).to_bytes(width, "little")),)
    length = min(chance.choice((1, 8, 16, 64, 512)), span.end - at)
    if how == 2:
        other = chance.choice(seeds)
        source = chance.choice([each for each in (other.pte, other.ptd) if each])
        start = chance.randrange(max(1, len(source) - length))
        return "splice", (Edit(span.file, at, source[start : start + length]),)
    return "run", (Edit(span.file, at, bytes([chance.choice((0, 255))]) * length),)


def _mended(index: int, seed: Seed, chance: random.Random) -> Mutant:
    """A description that says something else and whose hash is right: what an attacker could write."""
    span = chance.choice([each for each in seed.spans if each.what == "description"])
    inside = Span(0, span.start + _HEADER, span.end, span.what)
    _, edits = _edits([seed], seed, inside, chance)
    changed, _ = Mutant(index, "", edits).files(seed)
    digest = hashlib.sha256(changed[inside.start : inside.end]).digest()
    return Mutant(
        index, "description rewritten, hash mended", (*edits, Edit(0, span.start + 24, digest)), (-1, -1), True
    )


def _owner(seed: Seed, edit: Edit) -> bool:
    """Whether an edit reaches bytes that etcuda answers for."""
    end = edit.offset + len(edit.data)
    return any(span.file == edit.file and edit.offset < span.end and span.start < end for span in seed.spans)

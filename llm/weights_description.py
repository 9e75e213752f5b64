"""What a file of seeded weights holds, in a few hundred KiB of JSON that another machine makes the file of."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from etcuda.errors import CheckpointError, EtcudaError
from etcuda.kernels.formats.registry import find
from etcuda.llm.random_weights import RandomPart, RandomWeight
from etcuda.passes.graph.recipes import Recipe

if TYPE_CHECKING:
    from etcuda.backend.save import DataFile
    from etcuda.backend.weight_bytes import StoredWeight

_VERSION = 1
# Constants that are no seeded weights, such as frequencies of rotary positions, stand in the description.
_MOST_CONSTANT_BYTES = 32 << 20
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.bfloat16, torch.float16, torch.float32)}


@dataclasses.dataclass(frozen=True)
class Entry:
    """Bytes of the file that are made.

    Attributes:
        offset: in the file.
        nbytes: how many.
        sha256: their digest, in hexadecimal digits, by which the program knows them.
        pieces: what they are made of: names of weights and of their stored tensors, after one another.
    """

    offset: int
    nbytes: int
    sha256: str
    pieces: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Description:
    """A file of seeded weights.

    Attributes:
        file: its name beside the program.
        nbytes: its size.
        versions: of the packages that the digests were computed with.
        weights: by name.
        entries: what is made of them.
        constants: what is not: offsets in the file, and the bytes there. Anything else is zero.
    """

    file: str
    nbytes: int
    versions: dict[str, str]
    weights: dict[str, RandomWeight]
    entries: list[Entry]
    constants: list[tuple[int, bytes]]


def versions() -> dict[str, str]:
    """Of the packages whose arithmetic the bytes are."""
    import etcuda

    return {"etcuda": etcuda.__version__, "numpy": np.__version__, "torch": torch.__version__}


def describe(file: DataFile) -> bytes:
    """Describes a file of seeded weights, as JSON.

    Raises:
        CheckpointError: it holds more than a few MiB of other constants.
    """
    weights: dict[str, RandomWeight] = {}
    entries, constants = [], list(file.between())
    others = []
    for gap in file.gaps:
        pieces = _pieces(gap.weight)
        if pieces is None:
            others.append(gap.weight)
            if sum(map(len, others)) <= _MOST_CONSTANT_BYTES:
                constants.append((gap.offset, gap.weight.to_bytes()))
            continue
        weights |= {part.weight.name: part.weight for part in pieces}
        names = tuple((part.weight.name, part.part) for part in pieces)
        entries.append(Entry(gap.offset, len(gap.weight), gap.weight.sha256().hex(), names))
    inline = sum(len(data) for _, data in constants) + sum(map(len, others))
    if inline > _MOST_CONSTANT_BYTES:
        greatest = sorted(others, key=len, reverse=True)[:8]
        raise CheckpointError(
            f"{file.name}: expected at most {_MOST_CONSTANT_BYTES >> 20} MiB of constants that are no seeded weights, "
            f"got {inline / 2**20:.1f} MiB, of {', '.join(weight.name for weight in greatest)}. Write the weights with "
            "the program."
        )
    return to_json(Description(file.name, file.nbytes, versions(), weights, entries, constants))


def _pieces(stored: StoredWeight) -> list[RandomPart] | None:
    """The seeded tensors that a weight is made of; ``None`` if there are others."""
    source = stored.content.source
    if not isinstance(source, Recipe):
        return None
    leaves = list(source.leaves())
    parts = [leaf for leaf in leaves if isinstance(leaf, RandomPart)]
    return parts if len(parts) == len(leaves) else None


def to_json(description: Description) -> bytes:
    """A description as it is written to a file."""
    return json.dumps(
        {
            "version": _VERSION,
            "file": description.file,
            "nbytes": description.nbytes,
            "versions": description.versions,
            "weights": {name: _record(weight) for name, weight in description.weights.items()},
            "entries": [dataclasses.asdict(entry) for entry in description.entries],
            "constants": [[offset, base64.b64encode(data).decode()] for offset, data in description.constants],
        }
    ).encode()


def _record(weight: RandomWeight) -> dict[str, Any]:
    record: dict[str, Any] = {
        "shape": weight.shape,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "seed": weight.seed,
        "exponent": weight.exponent,
    }
    if weight.format is not None:
        record["format"] = {"name": weight.format.name, **dataclasses.asdict(weight.format)}
    return record


def read(path: pathlib.Path) -> Description:
    """Reads a description.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    try:
        made = _parse(json.loads(path.read_bytes()))
        _check(made)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: expected a description of weights, got no such file. It is written by etcuda export --random "
            "--weights none; carry it together with the program."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EtcudaError) as error:
        raise CheckpointError(
            f"{path}: expected a description of weights, as etcuda export --random --weights none writes it, got: "
            f"{type(error).__name__}: {error}. Copy the file again."
        ) from error
    return made


def _parse(found: Any) -> Description:
    if found["version"] != _VERSION:
        raise ValueError(f"version {found['version']!r}, where {_VERSION} is read")
    weights = {}
    for name, record in found["weights"].items():
        made = dict(record.get("format") or {})
        weight_format = find(made.pop("name")).format_type(**made) if made else None
        shape = tuple(int(size) for size in record["shape"])
        if weight_format is not None:
            weight_format.check_size(shape, name)
        weights[name] = RandomWeight(
            name, shape, _DTYPES[record["dtype"]], int(record["seed"]), int(record["exponent"]), weight_format
        )
    entries = [
        Entry(
            int(each["offset"]),
            int(each["nbytes"]),
            str(each["sha256"]),
            tuple((str(name), str(part)) for name, part in each["pieces"]),
        )
        for each in found["entries"]
    ]
    constants = [(int(offset), base64.b64decode(data, validate=True)) for offset, data in found["constants"]]
    return Description(str(found["file"]), int(found["nbytes"]), dict(found["versions"]), weights, entries, constants)


def _check(description: Description) -> None:
    """Raises a ``ValueError`` if bytes lie outside the file, over one another, or are not as many as their weights'."""
    for entry in description.entries:
        made = sum(nbytes for _, _, nbytes in pieces_of(description, entry))
        if made != entry.nbytes:
            raise ValueError(f"{entry.nbytes} bytes at {entry.offset}, whose weights are {made} bytes")
    spans = [(entry.offset, entry.nbytes) for entry in description.entries]
    spans += [(offset, len(data)) for offset, data in description.constants]
    end = 0
    for offset, nbytes in [*sorted(spans), (description.nbytes, 0)]:
        if offset < end:
            raise ValueError(f"bytes at {offset}, where others end at {end}")
        end = offset + nbytes


def pieces_of(description: Description, entry: Entry) -> Iterator[tuple[str, str, int]]:
    """Of each piece of an entry the weight's name, that of its stored tensor, and its bytes."""
    for name, part in entry.pieces:
        shape, dtype = description.weights[name].parts[part]
        yield name, part, math.prod(shape) * dtype.itemsize

"""Makes a file of seeded weights of its description, on any machine: nothing of the exporter is needed."""

from __future__ import annotations

import hashlib
import mmap
import os
import pathlib
import re
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from etcuda.backend.threads import in_threads
from etcuda.errors import CheckpointError
from etcuda.files import replacing, saving, write_at
from etcuda.llm.weights_description import Description, Entry, pieces_of, read, versions

SUFFIX = ".weights.json"
_KEY = re.compile(rb"etcuda/w/([0-9a-f]{64})")
_CHUNK = 8 << 20


def make_weights(
    program: pathlib.Path,
    output: pathlib.Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> pathlib.Path:
    """Makes the weights of a program that was exported without them, and checks that they are those that it expects.

    Args:
        program: ``m.pte``, with its description ``m.weights.json`` beside it; or the description itself.
        output: of the weights; by default ``m.ptd`` beside the program. A file there is replaced.
        progress: hears how many bytes of how many are written; called from several threads, one at a time.

    Returns:
        The file, whole and checked.

    Raises:
        CheckpointError: the description is missing, damaged or of another program, or the weights that are made here
            are others than those of the export; the message has their names and the versions.
        SaveError: the file cannot be written.
    """
    is_description = program.name.endswith(SUFFIX)
    source = program if is_description else program.with_name(program.name.removesuffix(".pte") + SUFFIX)
    description = read(source)
    if not is_description:
        _check_program(program, description)
    target = output or source.with_name(description.file)
    with saving(target), replacing([target]) as written, open(written[0], "w+b", buffering=0) as file:
        file.truncate(description.nbytes)
        _write(file.fileno(), description, progress)
        in_threads([_checking(file.fileno(), entry, description, source) for entry in description.entries])
    return target


def _write(file: int, description: Description, progress: Callable[[int, int], None]) -> None:
    for offset, data in description.constants:
        write_at(file, offset, [memoryview(data)])
    places: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    size: dict[str, int] = defaultdict(int)
    for entry in description.entries:
        offset = entry.offset
        for name, part, nbytes in pieces_of(description, entry):
            places[name][part].append(offset)
            offset += nbytes
            size[name] += nbytes
    lock, done, total = threading.Lock(), 0, sum(size.values())

    def writing(name: str) -> Callable[[], None]:
        def run() -> None:
            nonlocal done
            ends = {part: list(offsets) for part, offsets in places[name].items()}
            for block in description.weights[name].blocks():
                count = 0
                for part, tensor in block.items():
                    data = _bytes(tensor)
                    for index, offset in enumerate(ends.get(part, ())):
                        ends[part][index] = write_at(file, offset, [data])
                        count += len(data)
                with lock:
                    done += count
                    progress(done, total)

        return run

    # The largest first, so that the last to end is a small one.
    in_threads([writing(name) for name in sorted(places, key=lambda name: -size[name])])


def _bytes(tensor: Tensor) -> memoryview:
    flat: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def _checking(file: int, entry: Entry, description: Description, source: pathlib.Path) -> Callable[[], None]:
    def run() -> None:
        digest = hashlib.sha256()
        for start in range(entry.offset, entry.offset + entry.nbytes, _CHUNK):
            digest.update(os.pread(file, min(_CHUNK, entry.offset + entry.nbytes - start), start))
        if digest.hexdigest() != entry.sha256:
            made_of = ", ".join(f"{name} ({part})" for name, part in entry.pieces)
            here, there = (
                ", ".join(f"{package} {version}" for package, version in each.items())
                for each in (versions(), description.versions)
            )
            raise CheckpointError(
                f"{made_of}: expected bytes of SHA-256 {entry.sha256[:12]}, as {there} made them for {source.name}, "
                f"got {digest.hexdigest()[:12]} from {here}. Please report it with these versions and the processor; "
                "the program runs with the weights of its export, m.ptd."
            )

    return run


def _check_program(program: pathlib.Path, description: Description) -> None:
    try:
        with open(program, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
            keys = {key.decode() for key in _KEY.findall(held)}
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{program}: expected a program, got: {error}. Name the .pte file that etcuda export wrote, or its "
            f"description, {SUFFIX}."
        ) from error
    missing = sorted({entry.sha256 for entry in description.entries} - keys)
    if missing:
        raise CheckpointError(
            f"{program}: expected the program of its description, which reads {len(description.entries)} weights, got "
            f"one that does not read {len(missing)} of them, such as {missing[0][:12]}. Carry both files of one export."
        )

"""Makes a file of seeded weights of its description, on any machine: nothing of the exporter is needed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import mmap
import os
import pathlib
import re
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from etcuda.backend.threads import in_threads
from etcuda.backend.worker.client import import_root
from etcuda.errors import CheckpointError
from etcuda.files import replacing, saving, write_at
from etcuda.llm.weights_description import Description, Entry, pieces_of, read, versions

SUFFIX = ".weights.json"
_KEY = re.compile(rb"etcuda/w/([0-9a-f]{64})")
_CHUNK = 8 << 20
# Numbers: less are made before processes have begun.
_WORTH_PROCESSES = 1 << 29

Progress = Callable[[int, int], None]


def make_weights(
    program: pathlib.Path,
    output: pathlib.Path | None = None,
    progress: Progress = lambda done, total: None,
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
        _write(pathlib.Path(written[0]), description, source, progress)
        in_threads([_checking(file.fileno(), entry, description, source) for entry in description.entries])
    return target


def _write(path: pathlib.Path, description: Description, source: pathlib.Path, progress: Progress) -> None:
    """Writes all weights, in processes of their own if that is worth their start: threads of one process wait for one
    another in the interpreter and in the kernel, where memory is given out."""
    with open(path, "r+b", buffering=0) as file:
        for offset, data in description.constants:
            write_at(file.fileno(), offset, [memoryview(data)])
    sizes: dict[str, int] = defaultdict(int)
    for entry in description.entries:
        for name, _, nbytes in pieces_of(description, entry):
            sizes[name] += nbytes
    lock, done, total = threading.Lock(), 0, sum(sizes.values())
    stop = threading.Event()

    def add(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            progress(done, total)

    # The largest first, so that the last to end is a small one.
    names = sorted(sizes, key=lambda name: -sizes[name])
    numbers = {name: sum(math.prod(shape) for shape, _ in description.weights[name].parts.values()) for name in names}
    if sum(numbers.values()) < _WORTH_PROCESSES:
        in_threads([functools.partial(write_weights, path, description, [name], add, stop) for name in names], stop)
        return
    shares: list[list[str]] = [[] for _ in range(min(len(names), len(os.sched_getaffinity(0))))]
    loads = [0] * len(shares)
    for name in names:
        least = loads.index(min(loads))
        shares[least].append(name)
        loads[least] += numbers[name]
    in_threads([functools.partial(_write_elsewhere, path, source, share, add, stop) for share in shares], stop)


def write_weights(
    path: pathlib.Path,
    description: Description,
    names: list[str],
    add: Callable[[int], None],
    stop: threading.Event | None = None,
) -> None:
    """Writes some weights to their places in a file.

    Args:
        path: of the file, which has its size.
        description: of the file.
        names: of the weights.
        add: hears how many bytes were written since it heard last.
        stop: ends it when it is set.
    """
    ends: dict[str, dict[str, list[int]]] = {name: defaultdict(list) for name in names}
    for entry in description.entries:
        offset = entry.offset
        for name, part, nbytes in pieces_of(description, entry):
            if name in ends:
                ends[name][part].append(offset)
            offset += nbytes
    with open(path, "r+b", buffering=0) as file:
        for name in names:
            for block in description.weights[name].blocks():
                if stop is not None and stop.is_set():
                    return
                count = 0
                for part, tensor in block.items():
                    data = _bytes(tensor)
                    for index, offset in enumerate(ends[name].get(part, ())):
                        ends[name][part][index] = write_at(file.fileno(), offset, [data])
                        count += len(data)
                add(count)


def _write_elsewhere(
    path: pathlib.Path, source: pathlib.Path, names: list[str], add: Callable[[int], None], stop: threading.Event
) -> None:
    """``write_weights`` in a process of its own, which ends when this one does: it can no longer say what it wrote."""
    command = [sys.executable, "-m", "etcuda.llm.weights_worker", str(path), str(source)]
    # Without the folder that the user is in, which may hold files named as modules are.
    paths = filter(None, [str(import_root()), os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, env=environment, **pipes) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stderr is not None
        # One that has ended already says why below.
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.write(json.dumps(names).encode())
            worker.stdin.close()
        for line in worker.stdout:
            if stop.is_set():
                worker.kill()
                return
            add(int(line))
        said = worker.stderr.read().decode(errors="replace").strip()
    if worker.returncode != 0 and not stop.is_set():
        raise CheckpointError(
            f"making {', '.join(names[:3])}: expected a worker to end with 0, got {worker.returncode}. It said: "
            f"{said.splitlines()[-1] if said else 'nothing'}. -9 is a lack of memory."
        )


def _bytes(tensor: Tensor) -> memoryview:
    flat: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def _checking(file: int, entry: Entry, description: Description, source: pathlib.Path) -> Callable[[], None]:
    def run() -> None:
        digest, buffer = hashlib.sha256(), memoryview(bytearray(min(_CHUNK, entry.nbytes)))
        start, end = entry.offset, entry.offset + entry.nbytes
        while start < end:
            count = os.preadv(file, [buffer[: end - start]], start)
            if count == 0:
                break
            digest.update(buffer[:count])
            start += count
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

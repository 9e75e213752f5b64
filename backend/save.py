"""Writes a program to disk: whole files or none, and an exception when it cannot be written."""

from __future__ import annotations

import dataclasses
import filecmp
import mmap
import os
import pathlib
import re
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from etcuda.backend.fill_gaps import fill
from etcuda.backend.state import check_program
from etcuda.backend.weight_bytes import Gap, leaving_gaps
from etcuda.errors import SaveError
from etcuda.files import real_file, replacing, saving
from etcuda.options import OWN_PTD_TAG
from etcuda.scratch import scratch_folder

if TYPE_CHECKING:
    from executorch.exir import ExecutorchProgramManager

# Of the file that describes weights, in place of .ptd.
DESCRIPTION = ".weights.json"
_WEIGHT_KEY = re.compile(rb"etcuda/w/[0-9a-f]{64}")
# ExecuTorch's flat tensor: identifier at byte 4; then, at byte 8, magic, size of the header, offset and size of the
# flatbuffer that holds the keys.
_FLAT_TENSOR = struct.Struct("<4x4s4sIQQ")


def save_program(
    program: ExecutorchProgramManager,
    path: str | os.PathLike[str],
    *,
    overwrite_weights: bool = False,
    describe: Callable[[DataFile], bytes] | None = None,
) -> list[pathlib.Path]:
    """Writes ``program`` to ``path``, and its external weights, if any, beside it: ``model.ptd`` beside ``model.pte``,
    or ``<ptd_name>.ptd``.

    A reader sees the old files or the new ones, whole; if one cannot be written, all stay what they were. Links are
    followed, and the mode of a file that is replaced is kept. ExecuTorch's own ``program.save`` logs a failed write and
    returns.

    Args:
        program: what ``to_executorch()`` returns.
        path: of the program.
        overwrite_weights: replace a ``.ptd`` file of another program. Otherwise one is replaced only if the program at
            ``path`` has its weights there; one of the same content serves both programs.
        describe: what to write to ``model.weights.json`` in place of the external weights.

    Returns:
        The files of the program, the ``.pte`` last.

    Raises:
        SaveError: a file cannot be written, ``path`` is no path of a file, or another program's weights are in the way.
        StateError: methods name a buffer that they cannot share.
        TypeError: ``program`` is something else.
    """
    if not hasattr(program, "write_tensor_data_to_file"):
        raise TypeError(
            f"program: expected what to_executorch() returns, got {type(program).__name__}. Call "
            "to_edge_transform_and_lower(...).to_executorch() first."
        )
    if os.fsdecode(path).endswith(("/", os.sep)):
        raise SaveError(f"{os.fsdecode(path)}: expected the path of a file, got one of a folder. Add the file's name.")
    check_program({method: program.exported_program(method) for method in program.methods})
    target = pathlib.Path(os.fsdecode(path))
    with saving(target):
        real_file(target)
        with scratch_folder(target.parent) as folder:
            with leaving_gaps() as gaps:
                program.write_tensor_data_to_file(str(folder))
            if describe is None:
                fill(gaps)
            else:
                _replace_by_description(target, folder, gaps, describe)
            weights = _placed(target, sorted(folder.iterdir()))
            changed = [beside for beside, source in weights.items() if not _same(source, real_file(beside))]
            if not overwrite_weights and describe is None:
                for beside in changed:
                    _check_owner(beside, target)
            with replacing([*changed, target]) as written:
                for beside, new in zip(changed, written[:-1], strict=True):
                    shutil.move(weights[beside], new)
                with open(written[-1], "wb") as file:
                    program.write_to_file(file)
    return [*weights, target]


def check_place(path: str | os.PathLike[str], weights_beside: bool) -> None:
    """Checks what can be known of a place before there is a program for it: an export takes minutes.

    Args:
        path: of the program.
        weights_beside: whether its weights go to a ``.ptd`` of its name.

    Raises:
        SaveError: ``save_program`` could not write a program and its weights there.
    """
    target = pathlib.Path(os.fsdecode(path))
    with saving(target):
        real = real_file(target)
        if not os.access(real.parent, os.W_OK | os.X_OK):
            raise SaveError(f"{target}: expected a folder that can be written to, got {real.parent}. Give another one.")
        weights = target.with_name(target.name.removesuffix(".pte") + ".ptd")
        if weights_beside and real_file(weights).exists() and not _weight_keys(weights):
            raise _in_the_way(weights, target, "a file that is not etcuda's")


@dataclasses.dataclass(frozen=True)
class DataFile:
    """A file of external weights that is laid out and not filled.

    Attributes:
        name: that it would have beside the program.
        path: where it lies now.
        gaps: where weights belong.
    """

    name: str
    path: pathlib.Path
    gaps: Sequence[Gap]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self.path.stat().st_size

    def between(self) -> Iterator[tuple[int, bytes]]:
        """What is no weight: offsets, and the bytes there."""
        with open(self.path, "rb") as file:
            start = 0
            for stop, after in [*((gap.offset, gap.offset + len(gap.weight)) for gap in self.gaps), (self.nbytes, 0)]:
                file.seek(start)
                if start < stop:
                    yield start, file.read(stop - start)
                start = after


def _replace_by_description(
    target: pathlib.Path, folder: pathlib.Path, gaps: Sequence[Gap], describe: Callable[[DataFile], bytes]
) -> None:
    files = list(folder.iterdir())
    if [file.name for file in files] != [f"{OWN_PTD_TAG}.ptd"]:
        raise SaveError(
            f"{target}: expected external weights in one file named after the program to describe, got "
            f"{[file.name for file in files]}. Leave out ptd_name, and store weights in a .ptd file."
        )
    name = target.name.removesuffix(".pte") + ".ptd"
    (folder / f"{OWN_PTD_TAG}{DESCRIPTION}").write_bytes(describe(DataFile(name, files[0], gaps)))
    files[0].unlink()


def _placed(target: pathlib.Path, sources: list[pathlib.Path]) -> dict[pathlib.Path, pathlib.Path]:
    """Files that ExecuTorch named after the tags of their weights, by the paths that they go to."""
    placed: dict[pathlib.Path, pathlib.Path] = {}
    for source in sources:
        suffix = source.name.removeprefix(OWN_PTD_TAG)
        own = suffix in (".ptd", DESCRIPTION)
        beside = target.with_name(target.name.removesuffix(".pte") + suffix if own else source.name)
        if beside in placed:
            raise SaveError(
                f"{beside}: expected one file of external weights for it, got those of ptd_name={beside.stem!r} and "
                "those that are named after the program. Give the program or the weights another name."
            )
        placed[beside] = source
    return placed


def _same(source: pathlib.Path, real: pathlib.Path) -> bool:
    return real.exists() and filecmp.cmp(source, real, shallow=False)


def _check_owner(weights: pathlib.Path, program: pathlib.Path) -> None:
    if not weights.exists():
        return
    keys = _weight_keys(weights)
    if keys and program.exists() and program.stat().st_size:
        with open(program, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
            if all(held.find(key) >= 0 for key in keys):
                return
    raise _in_the_way(weights, program, "the weights of another program" if keys else "a file that is not etcuda's")


def _in_the_way(weights: pathlib.Path, program: pathlib.Path, got: str) -> SaveError:
    return SaveError(
        f"{weights}: expected no such file, or the weights of the {program.name} that is replaced, got {got}. Save to "
        "another folder, give the weights a name of their own (options={'ptd_name': ...}; without that option it is "
        "the program's), or pass overwrite_weights=True, and the other program loses its weights."
    )


def _weight_keys(path: pathlib.Path) -> set[bytes]:
    """Keys of etcuda's weights in an external data file; none if it is another file."""
    with open(path, "rb") as file:
        head = file.read(_FLAT_TENSOR.size)
        if len(head) < _FLAT_TENSOR.size:
            return set()
        identifier, magic, _, offset, size = _FLAT_TENSOR.unpack(head)
        if identifier[:2] != b"FT" or magic != b"FH01" or offset + size > path.stat().st_size:
            return set()
        file.seek(offset)
        return set(_WEIGHT_KEY.findall(file.read(size)))

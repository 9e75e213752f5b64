"""``etcuda inspect FILE``."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from etcuda.errors import BlobError

if TYPE_CHECKING:
    from etcuda.backend.inspect import DelegateInfo, ProgramInfo, ValueInfo

_UNITS = ("B", "KiB", "MiB", "GiB")


@click.command()
@click.argument("file", type=click.Path(path_type=pathlib.Path))
@click.option("--json", "as_json", is_flag=True, help="everything, names of the kernels too, as JSON")
def command(file: pathlib.Path, as_json: bool) -> None:
    """Tell what etcuda's parts of a program hold: the .pte FILE that ExecuTorch wrote."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BlobError(
            f"inspect: {file}: expected a .pte that can be read, got: {error.strerror or error}. "
            "Pass the file that save_program wrote."
        ) from error
    from etcuda.backend.inspect import inspect_program

    try:
        info = inspect_program(data)
    except BlobError as error:
        raise BlobError(f"inspect: {file}: {error}") from error
    click.echo(json.dumps(dataclasses.asdict(info), indent=1) if as_json else "\n".join(_text(file.name, info)))


def _text(name: str, info: ProgramInfo) -> Iterator[str]:
    yield f"{name}: {_size(info.nbytes)}"
    delegates = [(method.name, delegate) for method in info.methods for delegate in method.delegates]
    if not delegates:
        yield "Nothing in it is delegated to etcuda."
    else:
        parts = [row for method, delegate in delegates for row in _parts(method, delegate)]
        yield from _table("method", "target", "code", "host", "kernels", "code size", "weights", "state", rows=parts)
        values = [row for method, delegate in delegates for row in _values(method, delegate)]
        yield from _table("method", "value", "name", "dtype", "shape", rows=values)
    others = [
        (method.name, ", ".join([*method.operators, *method.other_backends]))
        for method in info.methods
        if method.operators or method.other_backends
    ]
    if others:
        yield from _table("method", "operators and backends outside etcuda", rows=others)
    producers = {f"{key} {value}" for _, delegate in delegates for key, value in delegate.producers.items()}
    if producers:
        yield ""
        yield f"Made with {', '.join(sorted(producers))}."


def _parts(method: str, delegate: DelegateInfo) -> Iterator[Sequence[str]]:
    """A row for each code image."""
    weights = sum(each.nbytes for each in delegate.storages if each.state_name is None)
    state = sum(each.nbytes for each in delegate.storages if each.state_name is not None)
    for image in delegate.images:
        code = (image.target, image.code_kind, image.isa, str(image.num_kernels), _size(image.nbytes))
        yield (method, *code, _size(weights), _size(state))


def _values(method: str, delegate: DelegateInfo) -> Iterator[Sequence[str]]:
    for role, values in (("input", delegate.inputs), ("output", delegate.outputs)):
        for value in values:
            yield (method, role, value.name, value.dtype, _shape(value))


def _shape(value: ValueInfo) -> str:
    """Sizes, and ranges where a dimension is dynamic: ``1 x 1..512``."""
    return " x ".join(str(least) if least == most else f"{least}..{most}" for least, most in value.dims) or "scalar"


def _size(nbytes: int) -> str:
    size, unit = float(nbytes), 0
    while size >= 1024 and unit + 1 < len(_UNITS):
        size, unit = size / 1024, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{nbytes} B"


def _table(*head: str, rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """An empty line, the head, and the rows in columns."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    yield ""
    for row in (head, *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

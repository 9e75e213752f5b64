"""The measured table of one architecture: ``kernels/tuned/rounding/<arch>.json``, of ``etcuda tune rounding``."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from typing import Any, Literal

from etcuda.errors import KernelArgumentError
from etcuda.kernels.rounding.configs import RoundingConfig
from etcuda.kernels.rounding.problem import RoundingProblem

# "quantize" is etcuda::quantize_activation, which the others are compared with; it chooses its configuration itself.
KernelName = Literal["norm", "gate", "quantize"]
KERNELS: tuple[KernelName, ...] = ("norm", "gate", "quantize")
FORMAT = 1
FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tuned" / "rounding"
_COLUMNS = [field.name for field in dataclasses.fields(RoundingConfig)]
_SHAPE = tuple(field.name for field in dataclasses.fields(RoundingProblem))


@dataclasses.dataclass(frozen=True)
class Entry:
    """What was measured for one shape and one kernel: configurations with microseconds, the fastest first.

    ``overlap`` is 1 if every kernel was launched while the one in front of it ran, as compiled programs do it.
    """

    kernel: KernelName
    problem: RoundingProblem
    candidates: tuple[tuple[RoundingConfig, float], ...]
    overlap: int = 0

    @property
    def best(self) -> RoundingConfig:
        """The fastest configuration."""
        return self.candidates[0][0]

    @property
    def us(self) -> float:
        """Its microseconds."""
        return self.candidates[0][1]


@dataclasses.dataclass(frozen=True)
class Table:
    """All entries on one architecture, and what they were measured on."""

    arch: str
    environment: dict[str, Any]
    entries: tuple[Entry, ...]

    def of(self, kernel: KernelName) -> list[Entry]:
        """The entries of one kernel."""
        return [entry for entry in self.entries if entry.kernel == kernel]


def to_json(table: Table) -> str:
    """The table as text, an entry a line."""
    lines = []
    for entry in table.entries:
        rows = [[*dataclasses.astuple(config), round(us, 3)] for config, us in entry.candidates]
        shape = dataclasses.asdict(entry.problem)
        record = {"kernel": entry.kernel, "overlap": entry.overlap, **shape, "candidates": rows}
        lines.append(json.dumps(record, separators=(",", ":")))
    head = {"format": FORMAT, "arch": table.arch, "environment": table.environment, "columns": _COLUMNS}
    return json.dumps(head, indent=1)[:-2] + ',\n "entries": [\n' + ",\n".join(lines) + "\n]}\n"


def from_json(text: str, source: str) -> Table:
    """Parses a table.

    Raises:
        KernelArgumentError: not a table of this format; names ``source``.
    """
    try:
        value = json.loads(text)
        for name, wanted in (("format", FORMAT), ("columns", _COLUMNS)):
            if value[name] != wanted:
                raise ValueError(f"expected {name} {wanted}, got {value[name]}")
        return Table(value["arch"], value["environment"], tuple(_entry(record) for record in value["entries"]))
    except (ValueError, KeyError, TypeError) as error:
        raise KernelArgumentError(
            f"{source}: expected a table that `etcuda tune rounding` wrote, got something else ({error}). Run the "
            "tuner again, or remove the file to choose by the model."
        ) from error


def _entry(record: dict[str, Any]) -> Entry:
    kernel: KernelName = record["kernel"]
    if kernel not in KERNELS:
        raise ValueError(f"expected one of {', '.join(KERNELS)}, got {kernel!r}")
    problem = RoundingProblem(**{name: record[name] for name in _SHAPE})
    rows = tuple((RoundingConfig(*map(int, row[:-1])), float(row[-1])) for row in record["candidates"])
    if not rows:
        raise ValueError(f"an entry of {kernel} has no candidates")
    return Entry(kernel, problem, tuple(sorted(rows, key=lambda row: row[1])), int(record["overlap"]))


@functools.cache
def load(arch: str) -> Table | None:
    """The table of an architecture, or ``None`` if it was never measured.

    Raises:
        KernelArgumentError: the file is not a table.
    """
    path = FOLDER / f"{arch}.json"
    return from_json(path.read_text(), str(path)) if path.is_file() else None

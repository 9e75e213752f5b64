"""The measured table of one architecture: ``kernels/tuned/<family>/<arch>.json``, written by ``etcuda tune``."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from typing import Any, Literal

from etcuda.errors import KernelArgumentError
from etcuda.kernels.int4.configs import MatmulConfig, MatvecConfig
from etcuda.kernels.int4.problem import LinearProblem

KernelName = Literal["matvec", "matmul"]
Config = MatvecConfig | MatmulConfig
FORMAT = 1
FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tuned"
FAMILIES = {4: "int4", 8: "int8"}
_CONFIGS: dict[KernelName, type[Any]] = {"matvec": MatvecConfig, "matmul": MatmulConfig}
_SHAPE = tuple(field.name for field in dataclasses.fields(LinearProblem))


@dataclasses.dataclass(frozen=True)
class Entry:
    """What was measured for one shape and one kernel: configurations with microseconds, the fastest first.

    ``overlap`` is 1 if every kernel was launched while the one in front of it ran, as compiled programs do it.
    """

    kernel: KernelName
    problem: LinearProblem
    candidates: tuple[tuple[Config, float], ...]
    overlap: int = 0

    @property
    def best(self) -> Config:
        """The fastest configuration."""
        return self.candidates[0][0]

    @property
    def us(self) -> float:
        """Its microseconds."""
        return self.candidates[0][1]


@dataclasses.dataclass(frozen=True)
class Table:
    """All entries of one family on one architecture, and what they were measured on."""

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
        record = {
            "kernel": entry.kernel,
            "overlap": entry.overlap,
            **dataclasses.asdict(entry.problem),
            "candidates": rows,
        }
        lines.append(json.dumps(record, separators=(",", ":")))
    columns = {name: [field.name for field in dataclasses.fields(kind)] for name, kind in _CONFIGS.items()}
    head = {"format": FORMAT, "arch": table.arch, "environment": table.environment, "columns": columns}
    return json.dumps(head, indent=1)[:-2] + ',\n "entries": [\n' + ",\n".join(lines) + "\n]}\n"


def from_json(text: str, source: str) -> Table:
    """Parses a table.

    Raises:
        KernelArgumentError: not a table of this format; names ``source``.
    """
    try:
        value = json.loads(text)
        if value["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT}, got {value['format']}")
        for name, kind in _CONFIGS.items():
            fields = [field.name for field in dataclasses.fields(kind)]
            if value["columns"][name] != fields:
                raise ValueError(f"expected the columns of {name} to be {fields}, got {value['columns'][name]}")
        return Table(value["arch"], value["environment"], tuple(_entry(record) for record in value["entries"]))
    except (ValueError, KeyError, TypeError) as error:
        raise KernelArgumentError(
            f"{source}: expected a table that `etcuda tune int4` or `etcuda tune int8` wrote, got something else "
            f"({error}). Run the tuner again, or remove the file to choose by the model."
        ) from error


def _entry(record: dict[str, Any]) -> Entry:
    kernel: KernelName = record["kernel"]
    problem = LinearProblem(**{name: record[name] for name in _SHAPE})
    kind = _CONFIGS[kernel]
    rows = tuple((kind(*map(int, row[:-1])), float(row[-1])) for row in record["candidates"])
    if not rows:
        raise ValueError(f"an entry of {kernel} has no candidates")
    return Entry(kernel, problem, tuple(sorted(rows, key=lambda row: row[1])), int(record["overlap"]))


@functools.cache
def load(bits: int, arch: str) -> Table | None:
    """The table of weights of ``bits`` bits on an architecture, or ``None`` if it was never measured.

    Raises:
        KernelArgumentError: the file is not a table.
    """
    path = FOLDER / FAMILIES[bits] / f"{arch}.json"
    return from_json(path.read_text(), str(path)) if path.is_file() else None

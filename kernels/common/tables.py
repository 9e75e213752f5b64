"""Measured tables: what the tuner writes and the choices read, ``kernels/tuned/FAMILY/ARCH.json``.

A family names its kernels, their configurations and the numbers of a problem; the file has a line per entry.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from etcuda.errors import KernelArgumentError

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tuned"
FORMAT = 1

Kernel = TypeVar("Kernel", bound=str)
Problem = TypeVar("Problem")
Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Entry(Generic[Kernel, Problem, Config]):
    """What was measured for one shape and one kernel: configurations with microseconds, the fastest first.

    ``pdl`` is 1 if every kernel was launched while the one in front of it ran, as compiled programs do it.
    """

    kernel: Kernel
    problem: Problem
    candidates: tuple[tuple[Config, float], ...]
    pdl: int = 0

    @property
    def best(self) -> Config:
        """The fastest configuration."""
        return self.candidates[0][0]

    @property
    def us(self) -> float:
        """Its microseconds."""
        return self.candidates[0][1]


@dataclasses.dataclass(frozen=True)
class Table(Generic[Kernel, Problem, Config]):
    """All entries of one family on one architecture, and what they were measured on."""

    arch: str
    environment: dict[str, Any]
    entries: tuple[Entry[Kernel, Problem, Config], ...]

    def of(self, kernel: Kernel) -> list[Entry[Kernel, Problem, Config]]:
        """The entries of one kernel."""
        return [entry for entry in self.entries if entry.kernel == kernel]


@dataclasses.dataclass(frozen=True)
class TableFormat(Generic[Kernel, Problem, Config]):
    """How the tables of a kernel family are written.

    Attributes:
        family: its name: that of the folder, and what ``etcuda tune`` takes.
        configs: the configuration's type for each kernel; its fields are integers.
        problem: makes a problem of its numbers.
        shape: names of the numbers that are stored.
        pdl: whether entries tell how kernels were launched.
    """

    family: str
    configs: Mapping[Kernel, type[Any]]
    problem: Callable[..., Problem]
    shape: tuple[str, ...]
    pdl: bool

    @property
    def folder(self) -> pathlib.Path:
        """Where the tables that export reads lie."""
        return FOLDER / self.family

    def path(self, arch: str) -> pathlib.Path:
        """The table of an architecture that export reads."""
        return self.folder / f"{arch}.json"

    def to_json(self, table: Table[Kernel, Problem, Config]) -> str:
        """The table as text, an entry a line."""
        lines = []
        for entry in table.entries:
            rows = [
                [*(getattr(config, name) for name in _fields(type(config))), round(us, 3)]
                for config, us in entry.candidates
            ]
            record = {
                "kernel": entry.kernel,
                **({"pdl": entry.pdl} if self.pdl else {}),
                **{name: getattr(entry.problem, name) for name in self.shape},
                "candidates": rows,
            }
            lines.append(json.dumps(record, separators=(",", ":")))
        columns = {name: _fields(config) for name, config in self.configs.items()}
        head = {"format": FORMAT, "arch": table.arch, "environment": table.environment, "columns": columns}
        return json.dumps(head, indent=1)[:-2] + ',\n "entries": [\n' + ",\n".join(lines) + "\n]}\n"

    def from_json(self, text: str, source: str) -> Table[Kernel, Problem, Config]:
        """Parses a table.

        Raises:
            KernelArgumentError: not a table of this format; names ``source``.
        """
        try:
            value = json.loads(text)
            if value["format"] != FORMAT:
                raise ValueError(f"expected format {FORMAT}, got {value['format']}")
            for name, config in self.configs.items():
                if value["columns"][name] != _fields(config):
                    raise ValueError(
                        f"expected the columns of {name} to be {_fields(config)}, got {value['columns'][name]}"
                    )
            return Table(value["arch"], value["environment"], tuple(map(self._entry, value["entries"])))
        except (ValueError, KeyError, TypeError) as error:
            raise KernelArgumentError(
                f"{source}: expected a table that `etcuda tune {self.family}` wrote, got something else ({error}). "
                "Run the tuner again, or remove the file to choose by the model."
            ) from error

    def load(self, arch: str) -> Table[Kernel, Problem, Config] | None:
        """The table of an architecture, or ``None`` if it was never measured.

        Raises:
            KernelArgumentError: the file is not a table.
        """
        path = self.path(arch)
        return self.from_json(path.read_text(), str(path)) if path.is_file() else None

    def _entry(self, record: dict[str, Any]) -> Entry[Kernel, Problem, Config]:
        kernel: Kernel = record["kernel"]
        problem = self.problem(**{name: record[name] for name in self.shape})
        config = self.configs[kernel]
        rows = [(config(*map(int, row[:-1])), float(row[-1])) for row in record["candidates"]]
        if not rows:
            raise ValueError(f"an entry of {kernel} has no candidates")
        candidates = tuple(sorted(rows, key=lambda row: row[1]))
        return Entry(kernel, problem, candidates, int(record["pdl"]) if self.pdl else 0)


def _fields(config: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]

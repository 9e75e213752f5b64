"""The measured table of one architecture: ``kernels/tuned/<arch>.json``, written by ``etcuda tune attention``."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from typing import Any, Literal

from etcuda.errors import KernelArgumentError
from etcuda.kernels.attention.configs import SplitConfig, TiledConfig
from etcuda.kernels.attention.problem import AttentionProblem

KernelName = Literal["split", "tiled"]
Config = SplitConfig | TiledConfig
FORMAT = 1
_CONFIGS: dict[KernelName, type[Any]] = {"split": SplitConfig, "tiled": TiledConfig}
_SHAPE = ("batch", "num_heads", "num_kv_heads", "head_dim", "l_q", "l_kv", "causal", "window")
FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tuned"


@dataclasses.dataclass(frozen=True)
class Entry:
    """What was measured for one shape and one kernel: configurations with microseconds, the fastest first."""

    kernel: KernelName
    problem: AttentionProblem
    candidates: tuple[tuple[Config, float], ...]

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
    """All entries of one architecture, and what they were measured on."""

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
        shape = {name: getattr(entry.problem, name) for name in _SHAPE}
        rows = [[*dataclasses.astuple(config), round(us, 3)] for config, us in entry.candidates]
        lines.append(json.dumps({"kernel": entry.kernel, **shape, "candidates": rows}, separators=(",", ":")))
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
        entries = tuple(_entry(record) for record in value["entries"])
        return Table(value["arch"], value["environment"], entries)
    except (ValueError, KeyError, TypeError) as error:
        raise KernelArgumentError(
            f"{source}: expected a table that `etcuda tune attention` wrote, got something else ({error}). "
            "Run the tuner again, or remove the file to export with the model."
        ) from error


def _entry(record: dict[str, Any]) -> Entry:
    kernel: KernelName = record["kernel"]
    shape: dict[str, Any] = {name: int(record[name]) for name in _SHAPE}
    problem = AttentionProblem(**shape)
    kind = _CONFIGS[kernel]
    rows = tuple((kind(*map(int, row[:-1])), float(row[-1])) for row in record["candidates"])
    if not rows:
        raise ValueError(f"an entry of {kernel} has no candidates")
    return Entry(kernel, problem, tuple(sorted(rows, key=lambda row: row[1])))


@functools.cache
def load(arch: str) -> Table | None:
    """The table of an architecture, or ``None`` if it was never measured.

    Raises:
        KernelArgumentError: the file is not a table.
    """
    path = FOLDER / f"{arch}.json"
    return from_json(path.read_text(), str(path)) if path.is_file() else None

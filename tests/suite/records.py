"""What became of each case of the suite, in a file that grows as cases are tried, so that a run can go on."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable
from typing import Any


@dataclasses.dataclass
class CaseRecord:
    """One case.

    Attributes:
        left: operators that the delegate did not take.
        error: what the export or the run said; empty if nothing.
        wrong: what is wrong with the outputs; empty if nothing.
        exported: a program was written.
        ran: it was run, and its outputs were compared.
        moves_only: alone nothing of it is delegated, for it does no arithmetic; the rest of the record is of the case
            with a negation of its results.
    """

    left: tuple[str, ...] = ()
    error: str = ""
    wrong: str = ""
    exported: bool = False
    ran: bool = False
    moves_only: bool = False

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if self.error:
            return "run failed" if self.exported else "export failed"
        if self.wrong:
            return "wrong"
        if self.left:
            return "in part"
        return "right" if self.ran else "exported"


class Records:
    """The records of one target and dtype.

    Args:
        path: the file; read if it exists.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        data = json.loads(path.read_text()) if path.is_file() else {}
        self.facts: dict[str, str] = data.get("facts", {})
        self.cases = {key: _read(value) for key, value in data.get("cases", {}).items()}
        self.skipped: dict[str, str] = data.get("skipped", {})
        # Cases of a batch that was begun and not ended: something in it ended the process.
        self.begun: list[str] = data.get("begun", [])
        # Cases that were tried with a negation too, and are not delegated whole for all that.
        self.stubborn: list[str] = data.get("stubborn", [])

    def begin(self, keys: Iterable[str]) -> None:
        """Notes that these cases are being tried."""
        self.begun = list(keys)
        self.save()

    def end(self, found: dict[str, CaseRecord]) -> None:
        """Adds what became of them."""
        self.cases.update(found)
        self.begun = []
        self.save()

    def save(self) -> None:
        """Writes the file; fields that say nothing are left out."""
        data = {
            "facts": self.facts,
            "cases": {key: _written(each) for key, each in self.cases.items()},
            "skipped": self.skipped,
            "begun": self.begun,
            "stubborn": sorted(self.stubborn),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(_lines(data))
        temporary.replace(self.path)


_SHORT = {
    "right": CaseRecord(exported=True, ran=True),
    "exported": CaseRecord(exported=True),
    "moves only": CaseRecord(exported=True, ran=True, moves_only=True),
    "moves only, exported": CaseRecord(exported=True, moves_only=True),
}


def _written(record: CaseRecord) -> str | dict[str, object]:
    """A word for a record that says nothing else; its fields that are not empty for another."""
    for word, each in _SHORT.items():
        if record == each:
            return word
    return {key: value for key, value in dataclasses.asdict(record).items() if value}


def _read(value: str | dict[str, Any]) -> CaseRecord:
    if isinstance(value, str):
        return dataclasses.replace(_SHORT[value])
    return CaseRecord(**{**value, "left": tuple(value.get("left", ()))})


def _lines(data: dict[str, Any]) -> str:
    """JSON with one line for each entry of an entry."""
    parts = []
    for name, value in data.items():
        if isinstance(value, dict):
            inner = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value[key])}" for key in sorted(value))
            parts.append(f"{json.dumps(name)}: {{\n{inner}\n }}")
        else:
            parts.append(f"{json.dumps(name)}: {json.dumps(value)}")
    return "{\n " + ",\n ".join(parts) + "\n}\n"

"""A page from what ``run`` measured."""

from __future__ import annotations

import json
import pathlib
import textwrap
from typing import Any


def render(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes ``recurrent.md`` into ``folder``."""
    value = json.loads(source.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    ceilings = value["ceilings"]
    measured = ", ".join(f"{key} {text}" for key, text in value["environment"].items()) + "."
    lines = [
        "# Recurrent layers", "", *textwrap.wrap(measured, 119), "",
        f"Ceilings in this run: read {ceilings['read_bytes_per_s'] / 1e12:.2f} TB/s, bf16 product "
        f"{ceilings['flops_per_s'] / 1e12:.0f} TFLOP/s.", "",
        "Microseconds per call, with the standard deviation over the repetitions in brackets. Floor: the bytes that",
        "must move (of a decode step the weights, and the state twice) at the read ceiling. Error: relative norm",
        "against the formula in fp32. Shapes of Qwen3.5-35B-A3B where none is named.", "",
        "| call | engine | us | floor | of floor | error |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [_line(row, ceilings["read_bytes_per_s"]) for row in value["rows"]]
    lines += ["", "Made by `python -m benchmarks.recurrent`.", ""]
    (folder / "recurrent.md").write_text("\n".join(lines))


def _line(row: dict[str, Any], bytes_per_s: float) -> str:
    error = f"{row['error']:.1e}" if "error" in row else "-"
    if "us" not in row:
        return f"| {row['cell']} | {row['engine']} | - | - | - | {row['reason']} |"
    floor = row["nbytes"] / bytes_per_s * 1e6
    times = f"{row['us']:.2f} ({row['spread_us']:.2f})"
    return f"| {row['cell']} | {row['engine']} | {times} | {floor:.2f} | {floor / row['us']:.0%} | {error} |"

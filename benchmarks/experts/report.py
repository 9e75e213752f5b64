"""The page of what ``run`` measured."""

from __future__ import annotations

import json
import pathlib
import textwrap
from typing import Any

from benchmarks.experts.cells import FEW


def render(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes ``experts.md`` into ``folder``."""
    value = json.loads(source.read_text())
    measured = ", ".join(f"{key} {text}" for key, text in value["environment"].items()) + "."
    read = value["ceilings"]["read_bytes_per_s"]
    lines = ["# Mixtures of experts", "", *textwrap.wrap(measured, 119), ""]
    lines += [
        f"Read ceiling in this run: {read / 1e12:.2f} TB/s. Microseconds a call, median in a CUDA graph. Weights are",
        "random, and so are the experts of each token; of few tokens each call has other ones. int4 is in groups of 32",
        "with zero points. Floor: the weights of the chosen experts, all different as far as there are as many, read",
        "at the ceiling. Every result was compared with fp32.",
        "",
    ]
    for few, title in ((True, "Few tokens"), (False, "Many tokens")):
        rows = [row for row in value["rows"] if (row["tokens"] in FEW) == few]
        if rows:
            lines += [f"## {title}", "", *_table(rows, read), ""]
    lines += ["Made by `python -m benchmarks.experts`.", ""]
    (folder / "experts.md").write_text("\n".join(lines))


def _table(rows: list[dict[str, Any]], read: float) -> list[str]:
    lines = ["| model | weights | tokens | engine | us | floor us | share of floor | TFLOP/s |", "|" + "---|" * 8]
    for row in rows:
        floor = row["nbytes"] / read * 1e6
        head = f"| {row['model']} | {row['weights']} | {row['tokens']} | {row['engine']} "
        if row["us"] is None:
            lines.append(head + f"| {row['reason']} | {floor:.1f} | | |")
            continue
        rate = row["flops"] / row["us"] / 1e6
        lines.append(head + f"| {row['us']:.1f} | {floor:.1f} | {100 * floor / row['us']:.0f}% | {rate:.0f} |")
    return lines

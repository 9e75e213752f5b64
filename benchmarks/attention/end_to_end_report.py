"""The page of whole models, from what ``end_to_end_run`` measured."""

from __future__ import annotations

import json
import pathlib
from typing import Any

HEADING = (
    "model",
    "call",
    "whole call: formula",
    "ours",
    "kernels: formula",
    "ours",
    "attention: formula",
    "ours",
    "less by",
    "error",
)

INTRO = """Microseconds per call, bf16, batch 1, on one {gpu}.

- Whole call: median by the clock of the host, inputs and outputs in host memory.
- Kernels: while any of them ran, from CUPTI.
- Attention: what of that a program without attention, in which queries pass through, does not need; in brackets while
  one of our kernels ran, by name.
- Formula: what is compiled with `attention_kernels=False`: PyTorch's definition, products in fp32, over the whole
  cache of {max_length} tokens, whatever is filled.
- The models have real heads and two narrow layers, so attention has a larger share of a call than at full width.
- Error: our kernels' output against that of the formula, relative norm.
"""


def render(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes ``attention_end_to_end.md`` into ``folder``."""
    from benchmarks.attention.end_to_end import MAX_LENGTH

    value = json.loads(source.read_text())
    lines = ["# Attention in whole models", "", INTRO.format(gpu=value["gpu"], max_length=MAX_LENGTH)]
    lines += [
        "| " + " | ".join(HEADING) + " |",
        "|" + "---|" * len(HEADING),
    ]
    for formula, ours, none in triples(value["rows"]):
        before, after = (row["gpu_us"] - none["gpu_us"] for row in (formula, ours))
        cells = [
            ours["model"],
            f"{ours['method']} {ours['length']} after {ours['filled']}",
            f"{formula['host_us']:.0f}",
            f"{ours['host_us']:.0f}",
            f"{formula['gpu_us']:.1f}",
            f"{ours['gpu_us']:.1f}",
            f"{before:.1f}",
            f"{after:.1f} ({ours['attention_us']:.1f})",
            f"{before / after:.1f}x" if after > 0 else "",
            f"{ours['error']:.1e}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Made by `python -m benchmarks.attention end_to_end`.", ""]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "attention_end_to_end.md").write_text("\n".join(lines))


def triples(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """The rows of formula, kernels and none of each model and call.

    Raises:
        KeyError: a variant is missing.
    """
    found: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        key = (row["model"], row["method"], row["length"], row["filled"])
        found.setdefault(key, {})[row["variant"]] = row
    return [(variants["formula"], variants["kernels"], variants["none"]) for variants in found.values()]

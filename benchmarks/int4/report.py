"""Markdown and a plot from what ``run`` measured."""

from __future__ import annotations

import json
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

from benchmarks.int4.cells import RECORDED_US
from benchmarks.int4.engines import ENGINES, OURS, PARTS, UNCHECKED
from etcuda.kernels.formats.registry import formats
from etcuda.kernels.linear.choose import table

_TITLES = {
    "decode": "One token: W4A8, group 32, zero points",
    "few": "A few tokens: W4A8",
    "prompt": "Short prompts: W4A8",
    "gated": "Behind a gated activation: W4A8, both together",
    "prefill": "Prefill: W4A8",
    "exact": "Exact activations: W4A16",
    "int8": "int8 weights: W8A8, group 32, symmetric",
}
# What a plain read of large memory reaches on this GPU, for the floor: the figure that earlier measurements used.
READ_BYTES_PER_S = 4.36e12
NOTES = pathlib.Path(__file__).resolve().parent / "notes.md"


def render(sources: Sequence[pathlib.Path], folder: pathlib.Path) -> None:
    """Writes ``int4.md`` and ``int4.png`` into ``folder``.

    A section is of one run, peers included: the last of ``sources`` that has it.
    """
    runs = [json.loads(source.read_text()) for source in sources]
    sections = {row["kind"]: run for run in runs for row in run["rows"]}
    all_rows = [row for run in runs for row in run["rows"] if sections[row["kind"]] is run]
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["# int4 and int8 linear layers", ""]
    for run in runs:
        kinds = ", ".join(kind for kind in _TITLES if sections.get(kind) is run)
        ceilings = run["ceilings"]
        measured = f"Run of {kinds}: " + ", ".join(f"{key} {text}" for key, text in run["environment"].items()) + "."
        lines += [
            *textwrap.wrap(measured, 119),
            f"Ceilings in it: read {ceilings['read_bytes_per_s'] / 1e12:.2f} TB/s, bf16 product "
            f"{ceilings['flops_per_s'] / 1e12:.0f} TFLOP/s.",
            "",
        ]
    lines += [
        "Microseconds per call, median of 9; in brackets the standard deviation. bf16 activations, random data,",
        "quantisation of activations included. Weights rotate, so that none is in the L2 cache. Every output was",
        "compared with fp32 and the dequantised weight; error: of ours, relative norm. Floor: the stored weight at",
        "4.36 TB/s. Ratio: ours over the best other engine of the same run that computes the product.",
        "",
        '"PDL": programmatic dependent launch: the kernel is launched while the one in front of it runs, and waits for',
        'it on the GPU, as compiled programs launch it; else serialized. "read" reads as many bytes and nothing else.',
        "tinygemm and the kernels of executorch multiply exact activations, the latter symmetric weights.",
        "",
        '"reordered before": the product alone, with PDL, of activations that the kernel in front has reordered, as',
        "for all products of an input but the first, and behind a gate.",
        '"gate apart": gate, reorder and product by three kernels, with PDL.',
        "",
    ]
    for kind, title in _TITLES.items():
        rows = [row for row in all_rows if row["kind"] == kind]
        if rows:
            lines += [f"## {title}", "", *_table(rows, kind in ("prefill",)), ""]
    lines += _recorded(all_rows)
    lines += [NOTES.read_text()]
    lines += _tuned()
    lines += _reasons(all_rows)
    lines += ["![int4](int4.png)", "", "Made by `python -m benchmarks.int4`.", ""]
    (folder / "int4.md").write_text("\n".join(lines))
    _plot(all_rows, folder / "int4.png")


def best(rows: list[dict[str, Any]], mine: bool) -> float | None:
    """The least median among our engines, or among the others that compute the product."""
    found = [
        row["times"]["median_us"]
        for row in rows
        if row["times"] and row["engine"] not in (*UNCHECKED, *PARTS) and (row["engine"] in OURS) == mine
    ]
    return min(found, default=None)


def floor_us(row: dict[str, Any]) -> float:
    """What reading the weight takes."""
    return float(row["weight_bytes"] / READ_BYTES_PER_S * 1e6)


def _cells(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    cells: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault(row["cell"], []).append(row)
    return cells


def _table(rows: list[dict[str, Any]], by_flops: bool) -> list[str]:
    engines = [name for name in ENGINES if any(row["engine"] == name and row["times"] for row in rows)]
    unit = "ours TFLOP/s" if by_flops else "of floor"
    lines = [f"| cell | floor | {' | '.join(engines)} | {unit} | error | ratio |"]
    lines.append("|---" * (len(engines) + 5) + "|")
    for cell, mine in _cells(rows).items():
        figures = []
        for engine in engines:
            times = next((row["times"] for row in mine if row["engine"] == engine), None)
            figures.append(f"{times['median_us']:.2f} ({times['spread_us']:.2f})" if times else "-")
        us, other = best(mine, True), best(mine, False)
        least = floor_us(mine[0])
        rate = ratio = "-"
        if us is not None:
            rate = f"{mine[0]['flops'] / us / 1e6:.0f}" if by_flops else f"{least / us:.0%}"
            ratio = "-" if other is None else f"{us / other:.2f}"
        errors = [row["error"] for row in mine if row["engine"] in OURS and row["error"] is not None]
        error = f"{max(errors):.1e}" if errors else "-"
        lines.append(f"| {cell} | {least:.1f} | {' | '.join(figures)} | {rate} | {error} | {ratio} |")
    return lines


def _recorded(rows: list[dict[str, Any]]) -> list[str]:
    """One row against what was recorded of ExecuTorch's CUDA kernels and of llama.cpp."""
    lines = [
        "## Against recorded figures",
        "",
        "One token, W4A8; the others in another run on the same kind of GPU, for orientation.",
        "",
    ]
    lines += ["| N x K | ours | executorch CUDA W4A8 | llama.cpp q4_0 | llama.cpp q4_K |"]
    lines += ["|---|---|---|---|---|"]
    for (n, k), others in RECORDED_US.items():
        ours = best([row for row in rows if row["kind"] == "decode" and (row["n"], row["k"]) == (n, k)], True)
        if ours is not None:
            figures = " | ".join(f"{us:.2f}" for us in others)
            lines.append(f"| {n} x {k} | {ours:.2f} | {figures} |")
    return [*lines, ""]


def _tuned() -> list[str]:
    """What the tuner measured of our kernels alone, from the tables that are in use."""
    lines = ["## What the tuner measured", ""]
    lines += [
        "Our kernels alone, the best configuration of each shape, microseconds as above, in runs of the tuner.",
        "",
    ]
    lines += [
        "| weight | GPU | M | N x K | kernel | launched | us | floor | TFLOP/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for record in formats():
        table_format = table.format_of(record.name)
        for path in sorted(table_format.folder.glob("*.json")):
            measured = table_format.from_json(path.read_text(), str(path))
            for entry in measured.entries:
                problem = entry.problem
                floor = problem.weight_bytes / READ_BYTES_PER_S * 1e6
                rate = 2 * problem.m * problem.n * problem.k / entry.us / 1e6
                launched = "PDL" if entry.pdl else "serialized"
                lines.append(
                    f"| {record.name} {problem.offset} | {measured.environment['gpu']} | {problem.m} | {problem.n} x "
                    f"{problem.k} | {entry.kernel} | {launched} | {entry.us:.2f} | {floor:.1f} | {rate:.0f} |"
                )
    return [*lines, ""]


def _reasons(rows: list[dict[str, Any]]) -> list[str]:
    """Engines that were measured nowhere, and why."""
    lines = []
    for engine in dict.fromkeys(row["engine"] for row in rows):
        mine = [row for row in rows if row["engine"] == engine]
        if not any(row["times"] for row in mine):
            lines.append(f"- {engine}: {mine[0]['reason']}")
    return ["## Not measured", "", *lines, ""] if lines else []


def _plot(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    decode = _cells([row for row in rows if row["kind"] == "decode"])
    large = [row for row in rows if row["kind"] in ("few", "prompt", "prefill") and row["n"] == 43008]
    large += [row for row in rows if row["kind"] == "decode" and row["n"] == 43008]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4))
    for engine in ENGINES:
        wide = 2.5 if engine in OURS else 1.0
        bars = [
            (cell, floor_us(row) / row["times"]["median_us"])
            for cell, mine in decode.items()
            for row in mine
            if row["engine"] == engine and row["times"]
        ]
        if bars:
            left.plot(
                [cell.split(", ")[1] for cell, _ in bars], [y for _, y in bars], marker=".", lw=wide, label=engine
            )
        points = sorted(
            (row["m"], row["flops"] / row["times"]["median_us"] / 1e6)
            for row in large
            if row["engine"] == engine and row["times"] and engine not in (*UNCHECKED, *PARTS)
        )
        if points:
            right.plot([x for x, _ in points], [y for _, y in points], marker=".", lw=wide, label=engine)
    left.set_ylabel("read floor / time, M = 1")
    left.tick_params(axis="x", labelrotation=40, labelsize=7)
    left.legend(fontsize=6)
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xlabel("tokens, 43008 x 5376")
    right.set_ylabel("TFLOP/s")
    right.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110)

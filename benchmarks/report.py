"""Writes what was measured: Markdown, JSON and a plot, under ``benchmarks/results``."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.calls import Row

RESULTS = pathlib.Path(__file__).resolve().parent / "results"


def environment() -> dict[str, str]:
    """The GPU, its driver and the versions in use."""
    import subprocess

    import torch
    import triton

    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm", "--format=csv,noheader", "--id=0"]
    gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    return {"gpu": gpu, "torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version()}


def save_calls(rows: Sequence[Row], folder: pathlib.Path) -> None:
    """Writes the raw rows; ``render_calls`` makes the page and the plot of them."""
    folder.mkdir(parents=True, exist_ok=True)
    value = {"environment": environment(), "rows": [dataclasses.asdict(row) for row in rows]}
    (folder / "calls.json").write_text(json.dumps(value, indent=1) + "\n")


def render_calls(folder: pathlib.Path = RESULTS) -> None:
    """Makes ``calls.md`` and ``calls.png`` from ``calls.json``."""
    value = json.loads((folder / "calls.json").read_text())
    rows = value["rows"]
    lines = [
        "# Single calls: latency and overhead",
        "",
        f"{', '.join(f'{key} {text}' for key, text in value['environment'].items())}.",
        "",
        "One call at a time on an idle device, inputs and output in host memory, host clock, microseconds: median and,",
        "in brackets, 10th to 90th percentile of 500 calls after 50. Weights and kernels are hot. All rows of a case",
        "come from one run; each row's output was within the case's tolerance of eager.",
        "",
        "Device time: copies and torch.compile's kernels as one CUDA graph, replayed back to back; the same figure for",
        "every engine of a case. Overhead: host clock minus device time; shown where all engines run the same kernel.",
        "",
    ]
    for case in dict.fromkeys(row["case"] for row in rows):
        mine = [row for row in rows if row["case"] == case]
        device = mine[0]["device_us"]
        lines += [f"## {case}", "", f"Device time {device:.1f} us.", ""]
        lines += ["| engine | CUDA graph | us per call | overhead us | relative error |", "|---|---|---|---|---|"]
        for row in mine:
            times = row["times"]
            span = f"{times['median_us']:.1f} ({times['p10_us']:.1f}-{times['p90_us']:.1f})"
            overhead = f"{times['median_us'] - device:.1f}" if case.startswith("one kernel") else ""
            graph = "yes" if row["cuda_graph"] else "no"
            lines.append(f"| {row['engine']} | {graph} | {span} | {overhead} | {row['error']:.1e} |")
        lines.append("")
    lines += ["![latency](calls.png)", "", "Made by `python -m benchmarks calls`.", ""]
    (folder / "calls.md").write_text("\n".join(lines))
    _plot(rows, folder / "calls.png")


def _plot(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, axes = pyplot.subplots(1, len(cases), figsize=(4.5 * len(cases), 3.6))
    for axis, case in zip(axes, cases, strict=True):
        mine = [row for row in rows if row["case"] == case]
        names = [row["engine"].replace(", ", ",\n") for row in mine]
        colours = ["tab:green" if row["engine"].startswith("etcuda") else "tab:gray" for row in mine]
        bars = axis.barh(names, [row["times"]["median_us"] for row in mine], color=colours)
        axis.bar_label(bars, fmt="%.0f", padding=2)
        axis.axvline(mine[0]["device_us"], color="tab:red", linewidth=1, linestyle="--", label="device time")
        axis.set_title(case, fontsize=9)
        axis.set_xlabel("us per call")
        axis.invert_yaxis()
        axis.margins(x=0.15)
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)

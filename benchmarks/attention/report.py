"""Markdown and plots from what ``run`` measured."""

from __future__ import annotations

import json
import math
import pathlib
import textwrap
from typing import Any

from benchmarks.attention.cells import RECORDED_US
from benchmarks.attention.engines import ENGINES, OURS
from etcuda.kernels.attention.shapes import DECODE_LENGTHS

_TITLES = {
    "decode": "Decode, one query row",
    "filled": "A long cache of which little is filled",
    "draft": "A few query rows at the end of a cache",
    "prefill": "Prefill, causal",
    "window": "Prefill, sliding window of 1024, and all pairs for comparison",
}
_NOTES = pathlib.Path(__file__).with_name("notes.md")
_BY_FLOPS = ("prefill", "window")


def render(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes ``attention.md`` and ``attention.png`` into ``folder``."""
    value = json.loads(source.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    ceilings = value["ceilings"]
    measured = ", ".join(f"{key} {text}" for key, text in value["environment"].items()) + "."
    lines = ["# Attention", "", *textwrap.wrap(measured, 119), ""]
    lines += [
        f"Ceilings in this run: read {ceilings['read_bytes_per_s'] / 1e12:.2f} TB/s, bf16 product "
        f"{ceilings['flops_per_s'] / 1e12:.0f} TFLOP/s.",
        "",
        "Microseconds per call, median; in brackets the standard deviation over the repetitions. bf16, random data.",
        "Cold: other memory is read through the L2 cache first. Every output was within 1e-2 of the reference in",
        "fp32 (relative norm). Floor: the bytes that must move at the read ceiling, or the operations at the",
        "product ceiling, whichever is slower. Ratio: ours over the best other engine of this run.",
        "",
    ]
    for timing in _timings(value["rows"]):
        for kind, title in _TITLES.items():
            rows = [row for row in value["rows"] if row["kind"] == kind and timing in row["times"]]
            if rows:
                lines += [f"## {title} ({timing})", "", *_table(rows, timing, ceilings, kind in _BY_FLOPS), ""]
                lines += _summary(rows, timing, kind)
    lines += _recorded(value["rows"])
    lines += [_NOTES.read_text()]
    lines += ["![attention](attention.png)", "", "Made by `python -m benchmarks.attention`.", ""]
    (folder / "attention.md").write_text("\n".join(lines))
    _plot(value["rows"], ceilings, folder / "attention.png")


def best(rows: list[dict[str, Any]], timing: str, mine: bool) -> float | None:
    """The least median among our engines, or among the others."""
    found = [row["times"][timing]["median_us"] for row in rows if (row["engine"] in OURS) == mine]
    return min(found, default=None)


def floor_us(row: dict[str, Any], ceilings: dict[str, float]) -> float:
    """What the call takes at the ceilings."""
    by_bytes = row["nbytes"] / ceilings["read_bytes_per_s"]
    return float(1e6 * max(by_bytes, row["flops"] / ceilings["flops_per_s"]))


def _timings(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(timing for row in rows for timing in row["times"]))


def _cells(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    cells: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault(row["cell"], []).append(row)
    return cells


def _table(rows: list[dict[str, Any]], timing: str, ceilings: dict[str, float], by_flops: bool) -> list[str]:
    engines = [name for name in ENGINES if any(row["engine"] == name for row in rows)]
    unit = "TFLOP/s" if by_flops else "GB/s"
    lines = [f"| cell | floor | {' | '.join(engines)} | ours {unit} | of floor | ratio |"]
    lines.append("|---" * (len(engines) + 5) + "|")
    for cell, mine in _cells(rows).items():
        figures = []
        for engine in engines:
            times = next((row["times"][timing] for row in mine if row["engine"] == engine), None)
            figures.append("-" if times is None else f"{times['median_us']:.2f} ({times['spread_us']:.2f})")
        least = floor_us(mine[0], ceilings)
        us, other = best(mine, timing, True), best(mine, timing, False)
        rate = fraction = ratio = "-"
        if us is not None:
            amount = mine[0]["flops"] / us / 1e6 if by_flops else mine[0]["nbytes"] / us / 1e3
            rate, fraction = f"{amount:.0f}", f"{least / us:.0%}"
            ratio = "-" if other is None else f"{us / other:.2f}"
        lines.append(f"| {cell} | {least:.1f} | {' | '.join(figures)} | {rate} | {fraction} | {ratio} |")
    return lines


def _summary(rows: list[dict[str, Any]], timing: str, kind: str) -> list[str]:
    ratios = [
        us / other
        for mine in _cells(rows).values()
        if (us := best(mine, timing, True)) is not None and (other := best(mine, timing, False)) is not None
    ]
    if not ratios:
        return []
    return [f"{len(ratios)} cells: geometric mean of ratios {geomean(ratios):.3f}, greatest {max(ratios):.2f}.", ""]


def geomean(values: list[float]) -> float:
    """Geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def _recorded(rows: list[dict[str, Any]]) -> list[str]:
    """Decode against the best of this run and of what was recorded of FlashInfer and llama.cpp."""
    timing = "graph cold"
    lines = []
    ratios = []
    for family, recorded in RECORDED_US.items():
        for length, other in zip(DECODE_LENGTHS, recorded, strict=True):
            mine = [
                row
                for row in rows
                if (row["kind"], row["family"], row["batch"], row["l_kv"]) == ("decode", family, 1, length)
                and timing in row["times"]
            ]
            us, here = best(mine, timing, True), best(mine, timing, False)
            known = [each for each in (here, other) if each is not None]
            if us is None or not known:
                continue
            ratios.append(us / min(known))
            shown = "-" if here is None else f"{here:.2f}"
            lines.append(f"| {family} | {length} | {us:.2f} | {shown} | {other} | {ratios[-1]:.2f} |")
    if not lines:
        return []
    head = ["## Decode against every known engine (graph cold)", ""]
    head += ["FlashInfer and llama.cpp were recorded in another run on the same kind of GPU.", ""]
    head += ["| family | L_kv | ours | best here | recorded | ratio to the best |", "|---|---|---|---|---|---|"]
    tail = f"{len(ratios)} cells: geometric mean {geomean(ratios):.3f}, greatest {max(ratios):.2f}."
    return [*head, *lines, "", tail, ""]


def _plot(rows: list[dict[str, Any]], ceilings: dict[str, float], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    timing = next(iter(_timings(rows)), None)
    panels = list(
        dict.fromkeys((r["kind"], r["family"]) for r in rows if r["kind"] in ("decode", "prefill") and r["batch"] == 1)
    )
    if timing is None or not panels:
        return
    columns = min(4, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(4.4 * columns, 3.4 * lines), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (kind, family) in zip(axes.flat, panels, strict=False):
        mine = [r for r in rows if (r["kind"], r["family"], r["batch"]) == (kind, family, 1) and timing in r["times"]]
        for engine in ENGINES:
            points = sorted(
                (r["l_kv"], r["times"][timing]["median_us"], r["flops"]) for r in mine if r["engine"] == engine
            )
            if not points:
                continue
            heights = [f / us / 1e6 if kind == "prefill" else us for _, us, f in points]
            style = {"linewidth": 2.5} if engine in OURS else {"linewidth": 1, "linestyle": "--"}
            axis.plot([x for x, _, _ in points], heights, marker=".", label=engine, **style)
        if kind == "decode":
            least = sorted({(r["l_kv"], floor_us(r, ceilings)) for r in mine})
            axis.plot([x for x, _ in least], [y for _, y in least], color="black", linewidth=0.7, label="read floor")
            axis.set_yscale("log")
        axis.set_xscale("log", base=2)
        axis.set_title(f"{kind} {family}", fontsize=9)
        axis.set_ylabel("TFLOP/s" if kind == "prefill" else "us", fontsize=8)
        axis.set_xlabel("L_kv", fontsize=8)
    axes.flat[0].legend(fontsize=6)
    figure.suptitle(f"bf16, {timing}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)

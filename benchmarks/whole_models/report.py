"""The page and the picture of whole models, from what was exported and measured."""

from __future__ import annotations

import json
import pathlib
from typing import Any

# Words on the figures that are in benchmarks/results.
NOTES = pathlib.Path(__file__).with_name("notes.md")

INTRO = """{gpu}, driver {driver}, torch {torch}. Batch 1, random weights, all layers; a model's rows are of one run.

- Decode: tokens a second of calls from the host, one token after another, inputs and logits in host memory, at so
  many tokens in the cache. Weights are read cold: they are larger than the L2.
- Prompt: tokens a second of one call that gives the last token's logits.
- Error: of logits against eager in fp32 (quantised weights made bf16 first), relative norm, the worst of a prompt and
  eight steps; in brackets eager's own in bf16, nothing where fp32 did not fit and the error is against bf16.
  etcuda's logits have the same bits with CUDA graphs as without.
- Limit: bytes of the weights that a token reads over {bandwidth:.2f} TB/s, a plain read on this GPU.
"""


def render(source: pathlib.Path, folder: pathlib.Path, bandwidth: float) -> None:
    """Writes ``whole_models.md`` and ``whole_models.png`` into ``folder``.

    Args:
        source: the JSON that ``run`` wrote.
        folder: where the page goes.
        bandwidth: bytes a second of a plain read.
    """
    value = json.loads(source.read_text())
    env = value["environment"]
    gpu, driver, *_ = [*env["gpu"].split(", "), ""]
    lines = ["# Whole models", "", INTRO.format(gpu=gpu, driver=driver, torch=env["torch"], bandwidth=bandwidth / 1e12)]
    rows = value["rows"]
    contexts, prompts = list(rows[0]["decode_us"]), list(rows[0]["prompt_us"])
    heading = ["model", "engine", "CUDA graph", *(f"decode at {c}" for c in contexts), "of the limit"]
    says_loading = any(row.get("weights_s") for row in rows)
    heading += [*(f"prompt {p}" for p in prompts), *["weights loaded, s (GB/s)"] * says_loading]
    heading += ["first step after, s", "error"]
    lines += ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    for row in rows:
        limit = limit_us(value["exports"].get(row["model"]), bandwidth)
        share = f"{100 * limit / row['decode_us'][contexts[0]]:.0f}%" if limit and "bf16" not in row["engine"] else ""
        cells = [row["model"], row["engine"], "yes" if row["cuda_graph"] else "no"]
        cells += [f"{1e6 / row['decode_us'][c]:.0f}" for c in contexts] + [share]
        taken = row["prompt_us"]
        cells += [f"{int(p) * 1e6 / taken[p]:,.0f}" if p in taken else "" for p in prompts]
        cells += [_loading(row)] * says_loading
        cells += [
            f"{row['load_s']:.1f}",
            f"{row['error']:.1e}" + (f" ({row['eager_error']:.1e})" if row["eager_error"] else ""),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "![rates](whole_models.png)", "", NOTES.read_text(), *_exports(value["exports"]), *_kernels(rows)]
    lines += ["Made by `python -m benchmarks.whole_models`.", ""]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "whole_models.md").write_text("\n".join(lines))
    _draw(rows, folder / "whole_models.png")


def _loading(row: dict[str, Any]) -> str:
    """Seconds until all weights were loaded, context of the driver included, and the rate."""
    seconds = row.get("weights_s", 0.0)
    return f"{seconds:.2f} ({row['weight_bytes'] / 1e9 / seconds:.1f})" if seconds else ""


def limit_us(exported: dict[str, Any] | None, bandwidth: float) -> float:
    """Microseconds in which the weights that one token reads can be read; 0 if that is not known."""
    return 0.0 if exported is None else exported["decode_weight_bytes"] / bandwidth * 1e6


def _exports(exports: dict[str, Any]) -> list[str]:
    counted = "Seconds, and the peak of all processes: what they share counted once where that was measured, and, in"
    lines = ["## Exports", "", f"{counted} brackets, what is of no file, counted for each.", ""]
    lines += ["| model | cores | weights | trace | lower | write | peak GiB |", "|---|---|---|---|---|---|---|"]
    for name, each in exports.items():
        stages = [f"{each['seconds'].get(stage, 0):.0f}" for stage in ("weights", "trace", "lower", "write")]
        peak = each["peak"]
        shown = f"{(peak['proportional'] or peak['total']) / 2**30:.1f} ({peak['anonymous'] / 2**30:.1f})"
        lines.append("| " + " | ".join([name, str(each["cores"]), *stages, shown]) + " |")
    return [*lines, ""] if exports else []


def _kernels(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        if not row["kernels"]:
            continue
        lines += [f"## A step of {row['model']}, {row['engine']}", ""]
        lines += [f"Some kernel ran for {row['busy_us']:.0f} us.", ""]
        lines += ["| kernel | launches | us each | us in all |", "|---|---|---|---|"]
        for name, (count, total) in sorted(row["kernels"].items(), key=lambda each: -each[1][1]):
            lines.append(f"| `{name[:80]}` | {count:.0f} | {total / count:.2f} | {total:.0f} |")
        lines.append("")
    return lines


def _draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(4.5 * len(models), 3.6), layout="constrained")
    for place, model in enumerate(models, start=1):
        axes = figure.add_subplot(1, len(models), place)
        mine = [row for row in rows if row["model"] == model]
        context = next(iter(mine[0]["decode_us"]))
        rates = [1e6 / row["decode_us"][context] for row in mine]
        axes.barh([row["engine"] for row in mine], rates)
        axes.set_title(f"{model}, {context} tokens")
        axes.set_xlabel("tok/s")
        axes.invert_yaxis()
    figure.savefig(path)

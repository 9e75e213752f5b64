"""Exports one model, and says what that took."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import time

from benchmarks.process_memory import PeakMemory
from benchmarks.whole_models.shapes import SHAPES
from etcuda.llm.export import export


def export_model(
    name: str, target: str, folder: pathlib.Path, write_weights: bool = True, device_sampling: bool = False
) -> None:
    """Writes ``NAME.pte``, ``NAME.ptd`` and ``NAME-export.json``.

    Without weights there is ``NAME.weights.json`` in place of ``NAME.ptd``, which ``etcuda weights`` makes of it on the
    machine that measures.

    The file has seconds of each stage (``weights`` are made and quantised, ``trace``, ``lower``, ``write``) and the
    peak in bytes of the memory of this process and all that it starts.
    """
    shape = SHAPES[name]
    options = shape.options(target, write_weights, device_sampling)
    seconds: dict[str, float] = {}
    stage, begun = "weights", time.perf_counter()

    def progress(now: str, done: int, total: int) -> None:
        nonlocal stage, begun
        if now != stage:
            seconds[stage] = time.perf_counter() - begun
            stage, begun = now, time.perf_counter()

    with PeakMemory(interval_s=2.0, proportional=True) as memory:
        summary = export(shape.write(folder / name), folder / f"{name}.pte", options, progress)
        peak = memory.take()
    seconds[stage] = time.perf_counter() - begun
    value = {
        "target": target,
        "methods": ["prefill", "decode"] + ["generate_step"] * device_sampling,
        "cores": len(os.sched_getaffinity(0)),
        "seconds": seconds,
        "weight_bytes": summary.weight_bytes,
        "decode_weight_bytes": summary.decode_weight_bytes,
        "cache_bytes": summary.cache_bytes,
        "peak": dataclasses.asdict(peak),
    }
    (folder / f"{name}-export.json").write_text(json.dumps(value, indent=1) + "\n")
    print(name, {key: round(number, 1) for key, number in seconds.items()}, f"peak {peak}", flush=True)

"""Measures what ``benchmarks.attention.end_to_end`` exported: whole calls, and the kernels in them."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import statistics
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.attention.end_to_end import CALLS, VARIANTS, VOCAB, Call, path_of
from benchmarks.native_session import NativeSession

WARMUP, TIMED, PROFILED = 3, 20, 5
MOST_ERROR = 2e-2
OURS = ("attention_split_", "attention_reduce_", "attention_tiled_", "attention_cluster_")


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant of a model in one call; microseconds per call.

    Attributes:
        host_us: median by the host's clock, inputs and outputs in host memory.
        gpu_us: in which some kernel ran; copies are not counted, kernels that pdl once.
        attention_us: the same of our attention kernels alone.
        kernels: of each kernel, by name: launches per call and microseconds per call.
        error: of the output, relative to the formula's; ``None`` for the formula itself and for no attention.
    """

    model: str
    variant: str
    method: str
    filled: int
    length: int
    host_us: float
    gpu_us: float
    attention_us: float
    kernels: dict[str, tuple[float, float]]
    error: float | None


def run(names: list[str], folder: pathlib.Path, library: pathlib.Path, out: pathlib.Path) -> int:
    """Measures the models and writes ``out`` after each.

    Returns:
        1 if the kernels' outputs differ from the formula's; such a model has no rows.
    """
    torch.cuda.init()
    value: dict[str, Any] = {"gpu": torch.cuda.get_device_name(0), "torch": torch.__version__, "rows": []}
    failed = 0
    with contextlib.ExitStack() as opened:
        for name in names:
            rows = measure(name, folder, library, opened)
            worst = max(row.error for row in rows if row.error is not None)
            print(f"{name}: kernels against the formula {worst:.1e}", flush=True)
            if worst > MOST_ERROR:
                failed = 1
                continue
            value["rows"] += [dataclasses.asdict(row) for row in rows]
            partial = out.with_suffix(".partial")
            partial.write_text(json.dumps(value, indent=1) + "\n")
            os.replace(partial, out)
    return failed


def measure(name: str, folder: pathlib.Path, library: pathlib.Path, opened: contextlib.ExitStack) -> list[Row]:
    """Every variant of a model in every call. Each starts with the prompt, from an empty cache.

    Args:
        name: of ``MODELS``.
        folder: where ``export`` wrote.
        library: the compiled ``native/session.cpp``.
        opened: closes the programs. Not before all is measured: CUPTI goes on calling a kernel by the name of one
            that was unloaded from the same address.
    """
    rows = []
    expected: dict[Call, Tensor] = {}
    for variant in VARIANTS:
        session = opened.enter_context(NativeSession(library, *path_of(folder, name, variant)))
        for call in CALLS:
            host_us, events = _time(session, call)
            shape = (1, VOCAB) if name == "decoder" else (1, call.length, VOCAB)
            output = session.output(shape, torch.bfloat16).double()
            error = None
            if variant == "formula":
                expected[call] = output
            elif variant == "kernels":
                error = float((output - expected[call]).norm() / expected[call].norm())
            ours = [event for event in events if event.name.startswith(OURS)]
            times = (host_us, busy_us(events) / PROFILED, busy_us(ours) / PROFILED)
            kernels = by_name(events, PROFILED)
            rows.append(Row(name, variant, call.method, call.filled, call.length, *times, kernels, error))
    return rows


def _time(session: NativeSession, call: Call) -> tuple[float, list[KernelEvent]]:
    inputs = call.inputs
    samples = [session.call(call.method, *inputs) for _ in range(WARMUP + TIMED)][WARMUP:]
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED):
            session.call(call.method, *inputs)
        torch.cuda.synchronize()
    return statistics.median(samples), events_of(profiler)


@dataclasses.dataclass(frozen=True)
class KernelEvent:
    """One launch of a kernel; microseconds."""

    name: str
    begin: float
    end: float


def events_of(profiler: Any) -> list[KernelEvent]:
    """Every kernel that the profiler saw, in the order of their begin.

    Raises:
        RuntimeError: it saw none.
    """
    found = []
    for event in profiler.profiler.kineto_results.events():
        on_gpu = event.device_type() == torch.autograd.DeviceType.CUDA
        if on_gpu and not event.name().startswith(("Memcpy", "Memset")):
            begin = event.start_ns() / 1e3
            found.append(KernelEvent(event.name(), begin, begin + event.duration_ns() / 1e3))
    if not found:
        raise RuntimeError("the profiler saw no kernel; expected CUPTI to record those of the whole process.")
    return sorted(found, key=lambda event: event.begin)


def busy_us(events: list[KernelEvent]) -> float:
    """Microseconds in which some kernel ran; one launched to pdl with the one before it waits for a part."""
    total, until = 0.0, -math.inf
    for event in events:
        total += max(0.0, event.end - max(event.begin, until))
        until = max(until, event.end)
    return total


def by_name(events: list[KernelEvent], calls: int) -> dict[str, tuple[float, float]]:
    """Launches and microseconds per call of every kernel."""
    found: dict[str, list[float]] = collections.defaultdict(list)
    for event in events:
        found[event.name].append(event.end - event.begin)
    return {name: (len(times) / calls, sum(times) / calls) for name, times in sorted(found.items())}

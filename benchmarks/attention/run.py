"""Runs the attention benchmark: correctness first, then time."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from triton.runtime.errors import TritonError

from benchmarks.attention.cells import CELLS, KINDS, Cell
from benchmarks.attention.engines import ENGINES, OURS, Call, UnsupportedError
from etcuda.kernels.attention.problem import FULL, LOWER_RIGHT, POSITIONS, cost
from etcuda.kernels.attention.reference import attention_reference
from etcuda.kernels.attention.tune import TUNING
from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.common.timing import Timer
from etcuda.kernels.common.tuner import environment

MOST_ERROR = 1e-2
_COLD_BYTES = 200 << 20
_CHECKED_ROWS = 48


@dataclasses.dataclass(frozen=True)
class Row:
    """One engine in one cell. Times are microseconds per call; ``reason`` says why there are none."""

    kind: str
    cell: str
    family: str
    batch: int
    l_q: int
    l_kv: int
    engine: str
    reason: str | None = None
    error: float | None = None
    times: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    nbytes: int = 0
    flops: int = 0


def run(out: pathlib.Path, mode: str, budget_s: float, engines: Sequence[str], kinds: Sequence[str] = KINDS) -> None:
    """Measures cell after cell until the time is up, and writes what there is after each.

    Args:
        out: the JSON file.
        mode: ``cudagraph``, ``plain`` or ``both``.
        budget_s: seconds after which no cell is started.
        engines: names in ``ENGINES``.
        kinds: sections of the page, of ``KINDS``.
    """
    deadline = time.monotonic() + budget_s
    device = LocalDevice.current()
    timer = Timer()
    value: dict[str, Any] = {
        "environment": environment(device, TUNING.timing),
        "ceilings": _ceilings(timer),
        "rows": [],
    }
    cells = [cell for cell in CELLS if cell.kind in kinds]
    for cell in cells:
        if time.monotonic() > deadline:
            break
        for row in measure(cell, device, timer, mode, engines, deadline):
            value["rows"].append(dataclasses.asdict(row))
        _save(out, value)
        torch.cuda.empty_cache()
    print(f"{len({row['cell'] for row in value['rows']})} of {len(cells)} cells in {out}")


def measure(
    cell: Cell, device: LocalDevice, timer: Timer, mode: str, engines: Sequence[str], deadline: float
) -> list[Row]:
    """Every engine in one cell, on the same inputs."""
    problem = cell.problem
    keys = 2 * problem.batch * problem.num_kv_heads * problem.l_kv * problem.head_dim * problem.dtype.itemsize
    sets = max(2, min(64, math.ceil(_COLD_BYTES / keys)))
    random = torch.Generator(device="cuda").manual_seed(0)

    def make(heads: int, length: int) -> Tensor:
        shape = (problem.batch, heads, length, problem.head_dim)
        return torch.randn(shape, dtype=problem.dtype, device="cuda", generator=random)

    q = make(problem.num_heads, problem.l_q)
    ks, vs = ([make(problem.num_kv_heads, problem.l_kv) for _ in range(sets)] for _ in range(2))
    calls = max(sets, 24) if problem.l_q <= 64 and keys < _COLD_BYTES else max(sets, 4)
    checked = None
    rows = []
    for name in engines:
        if not cell.peers and name not in OURS:
            continue
        row = Row(cell.kind, cell.name, cell.family, problem.batch, problem.l_q, problem.l_kv, name)
        least = cost(dataclasses.replace(problem, l_kv=cell.filled) if cell.filled else problem)
        row = dataclasses.replace(row, nbytes=least.nbytes, flops=least.flops)
        try:
            if time.monotonic() > deadline and name not in OURS:
                raise UnsupportedError("the time was up")
            call = ENGINES[name](cell, device)
            checked = checked or _expected(cell, q, ks[0], vs[0])
            error = _error(call(q, ks[0], vs[0]), *checked)
            row = dataclasses.replace(row, error=error)
            if not error <= MOST_ERROR:
                raise UnsupportedError(f"wrong: relative error {error:.1e}")
            row = dataclasses.replace(row, times=_times(timer, call, q, ks, vs, calls, mode))
        except UnsupportedError as reason:
            row = dataclasses.replace(row, reason=str(reason))
        except (RuntimeError, ValueError, TypeError, ImportError, AttributeError, TritonError) as error:
            # A peer that refuses a shape is a row of the table, not the end of the run; ours must not refuse.
            if name in OURS:
                raise
            row = dataclasses.replace(row, reason=f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")
        rows.append(row)
        shown = row.reason or {key: round(times["median_us"], 2) for key, times in row.times.items()}
        print(f"{cell.kind} {cell.name}: {name}: {shown}", flush=True)
    return rows


def _times(
    timer: Timer, call: Call, q: Tensor, ks: list[Tensor], vs: list[Tensor], calls: int, mode: str
) -> dict[str, dict[str, float]]:
    def indexed(index: int) -> Tensor:
        return call(q, ks[index % len(ks)], vs[index % len(vs)])

    found = {}
    if mode in ("cudagraph", "both"):
        found["graph cold"] = timer.graph_us(indexed, calls, 9)
        found["graph hot"] = timer.graph_us(indexed, calls, 5, hot=True)
    if mode in ("plain", "both"):
        found["plain cold"] = timer.plain_us(indexed, calls, 5)
    return {name: dataclasses.asdict(times) for name, times in found.items()}


def _expected(cell: Cell, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Some query rows, and the reference's results for them."""
    problem = cell.problem
    count = min(problem.l_q, _CHECKED_ROWS)
    rows = torch.linspace(0, problem.l_q - 1, count, device="cuda").long()
    shift = problem.l_kv - problem.l_q if problem.causal == LOWER_RIGHT else 0
    causal = FULL if problem.causal == FULL else POSITIONS
    positions = None if causal == FULL else rows + shift
    lengths = torch.full((problem.batch,), cell.filled, device="cuda") if cell.filled else None
    parts = []
    # Head by head of the keys: fp32 copies of a long cache would not fit.
    for head in range(problem.num_kv_heads):
        mine = slice(head * problem.group, (head + 1) * problem.group)
        keys, values = k[:, head : head + 1], v[:, head : head + 1]
        query = q[:, mine, rows]
        parts.append(attention_reference(query.float(), keys, values, None, lengths, positions, None, causal,
                                         problem.window))  # fmt: skip
    return rows, torch.cat(parts, 1)


def _error(got: Tensor, rows: Tensor, expected: Tensor) -> float:
    difference = got[:, :, rows].float() - expected
    return float(difference.norm() / expected.norm())


def _ceilings(timer: Timer) -> dict[str, float]:
    """What the GPU reaches in this run: bytes per second of a plain sum, operations per second of a product."""
    big = torch.zeros(1 << 31, dtype=torch.bfloat16, device="cuda")
    nbytes = big.numel() * big.element_size()
    read = timer.plain_us(lambda _: big.sum(), 3, 5).median_us
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    product = timer.plain_us(lambda _: a @ b, 5, 5).median_us
    return {"read_bytes_per_s": nbytes / read * 1e6, "flops_per_s": 2 * 8192**3 / product * 1e6}


def _save(path: pathlib.Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(partial, path)

"""Runs the benchmark: correctness first, then time."""

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

from benchmarks.int4.cells import CELLS, KINDS, Cell
from benchmarks.int4.engines import ENGINES, OURS, PARTS, UNCHECKED, UnsupportedError, Weight
from etcuda.kernels.activations.reference import gate_reference
from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.common.timing import Timer
from etcuda.kernels.common.tuner import environment
from etcuda.kernels.formats.stored import StoredWeight
from etcuda.kernels.linear.choose.select import choose
from etcuda.kernels.linear.choose.tune import make_weight
from etcuda.kernels.linear.problem import LinearProblem, cost

# Against fp32 with the dequantised weight and exact activations. Peers round scales to bf16.
MOST_ERROR = {"int8": 6.5e-3, "exact": 2e-3}
PEER_ERROR = 2e-2
_COLD_BYTES = 200 << 20
_MOST_SETS = 128


@dataclasses.dataclass(frozen=True)
class Row:
    """One engine in one cell. Times are microseconds per call; ``reason`` says why there are none."""

    kind: str
    cell: str
    m: int
    n: int
    k: int
    engine: str
    weight_bytes: int
    flops: int
    choice: str = ""
    reason: str | None = None
    error: float | None = None
    times: dict[str, float] | None = None


def run(out: pathlib.Path, budget_s: float, engines: Sequence[str], kinds: Sequence[str] = KINDS) -> None:
    """Measures cell after cell until the time is up, and writes what there is after each.

    Args:
        out: the JSON file.
        budget_s: seconds after which no cell is started.
        engines: names in ``ENGINES``.
        kinds: sections of the page, of ``KINDS``.
    """
    deadline = time.monotonic() + budget_s
    device = LocalDevice.current()
    timer = Timer()
    timing = "microseconds per call in a CUDA graph, weights not in the L2 cache, median"
    value: dict[str, Any] = {"environment": environment(device, timing), "ceilings": _ceilings(timer), "rows": []}
    cells = [cell for cell in CELLS if cell.kind in kinds]
    for cell in cells:
        if time.monotonic() > deadline:
            break
        for row in measure(cell, device, timer, engines):
            value["rows"].append(dataclasses.asdict(row))
        _save(out, value)
        torch.cuda.empty_cache()
    print(f"{len({(row['kind'], row['cell']) for row in value['rows']})} of {len(cells)} cells in {out}")


def measure(cell: Cell, device: LocalDevice, timer: Timer, engines: Sequence[str]) -> list[Row]:
    """Every engine in one cell, on the same integers and activations."""
    problem = cell.problem
    torch.manual_seed(0)
    sets = max(2, min(_MOST_SETS, math.ceil(_COLD_BYTES / problem.weight_bytes)))
    weights = [_make(problem) for _ in range(sets)]
    gated = cell.kind == "gated"
    x = torch.randn(problem.m, problem.k * (1 + gated), dtype=torch.bfloat16, device="cuda")
    factor = gate_reference(x, None, "silu") if gated else x
    expected = _expected(weights[0], factor, problem.n)
    symmetric = _without_zero(weights[0], factor, problem.n) if problem.format_name == "int4" else expected
    rows = []
    for name in engines:
        least = cost(problem)
        row = Row(cell.kind, cell.name, problem.m, problem.n, problem.k, name, problem.weight_bytes, least.flops)
        try:
            if name in OURS:
                choice = choose(problem, device, OURS.index(name))
                row = dataclasses.replace(row, choice=f"{choice.kernel} {dataclasses.astuple(choice.config)}")
            first = ENGINES[name](cell, weights[0], device)
            if name not in UNCHECKED:
                error = _error(first(x), symmetric if name.startswith("executorch") else expected)
                row = dataclasses.replace(row, error=error)
                most = MOST_ERROR[problem.activation_dtype] if name in (*OURS, *PARTS) else PEER_ERROR
                if not error <= most:
                    raise UnsupportedError(f"wrong: relative error {error:.1e}")
            copies = _copies(name, problem.weight_bytes, sets)
            calls = [first, *(ENGINES[name](cell, weight, device) for weight in weights[1:copies])]
            count = max(copies, 2 if problem.m > 64 else 8)
            times = timer.graph_us(lambda i, calls=calls: calls[i % len(calls)](x), count, 9)  # type: ignore[misc]
            row = dataclasses.replace(row, times=dataclasses.asdict(times))
            del first, calls
        except UnsupportedError as reason:
            row = dataclasses.replace(row, reason=str(reason))
        except (RuntimeError, ValueError, TypeError, ImportError, AttributeError, TritonError, AssertionError) as error:
            # A peer that refuses a shape is a row of the table, not the end of the run; ours must not refuse.
            if name in (*OURS, *PARTS):
                raise
            row = dataclasses.replace(row, reason=f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")
        rows.append(row)
        shown = row.reason or (round(row.times["median_us"], 2) if row.times else None)
        print(f"{cell.kind} {cell.name}: {name}: {shown} {row.error or 0:.1e} {row.choice}", flush=True)
    return rows


def _copies(name: str, weight_bytes: int, sets: int) -> int:
    # A weight in bf16 has more bytes, so that fewer of them are larger than the cache.
    return max(2, math.ceil(sets / 3)) if name == "cuBLAS bf16" else sets


def _make(problem: LinearProblem) -> Weight:
    weight_format, stored = make_weight(problem, problem.n)
    return Weight(StoredWeight(weight_format, *stored))


def _expected(weight: Weight, x: Tensor, n: int) -> Tensor:
    pieces = [x.float() @ weight.dequantize(start, start + 16384).T for start in range(0, n, 16384)]
    return torch.cat(pieces, 1)


def _without_zero(weight: Weight, x: Tensor, n: int) -> Tensor:
    """The product of the symmetric weight of the same integers and scales."""
    pieces = []
    for start in range(0, n, 16384):
        rows = weight.stored.rows(start, start + 16384)
        q = rows.format.unpack(rows.qdata).float() - 8
        scale = rows.scale.float().repeat_interleave(rows.format.group_size, 1)
        pieces.append(x.float() @ (q * scale).T)
    return torch.cat(pieces, 1)


def _error(got: Tensor, expected: Tensor) -> float:
    return float((got.float() - expected).norm() / expected.norm())


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

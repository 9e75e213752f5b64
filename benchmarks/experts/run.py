"""Runs the benchmark: correctness first, then time."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.experts.cells import CELLS, FEW, Cell, Model
from etcuda.kernels.activations.hopper.reorder import ARCH
from etcuda.kernels.common.device import LocalDevice, supports_pdl
from etcuda.kernels.common.timing import Timer
from etcuda.kernels.common.tuner import environment
from etcuda.kernels.experts.configs import HopperLaunch, Launch, choose
from etcuda.kernels.experts.hopper import grouped
from etcuda.kernels.experts.problem import cost
from etcuda.kernels.experts.reference import experts_reference

# Against fp32 with exact activations: what roundings to bf16, and activations of int8, may make.
MOST_ERROR = {"bf16": 1e-2, "int4": 3e-2}
_CHECKED = 16
_READ_BYTES = 2 << 30
_REPETITIONS = 9

Weights = list[Tensor | None]


@dataclasses.dataclass(frozen=True)
class Row:
    """One engine in one cell. Microseconds per call; ``reason`` says why there are none."""

    model: str
    weights: str
    tokens: int
    engine: str
    nbytes: int
    flops: int
    choice: str = ""
    error: float | None = None
    us: float | None = None
    spread_us: float | None = None
    reason: str | None = None


def run(out: pathlib.Path, budget_s: float, cells: Sequence[Cell] = CELLS) -> None:
    """Measures cell after cell until the time is up, and writes what there is after each."""
    start, rows, timer = time.perf_counter(), list[Row](), Timer()
    ceilings = {"read_bytes_per_s": _read_ceiling(timer)}
    weights: Weights = []
    held: tuple[Model, str] | None = None
    printed = 0
    for cell in cells:
        if time.perf_counter() - start > budget_s:
            break
        if held != (cell.model, cell.weights):
            weights.clear()
            weights = make_weights(cell.model, cell.weights)
            held = (cell.model, cell.weights)
        rows += measure(cell, weights, timer)
        value = {
            "environment": environment(LocalDevice.current(), "CUDA graph, cold, median"),
            "ceilings": ceilings,
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(value, indent=1) + "\n")
        for row in rows[printed:]:
            print(row, flush=True)
        printed = len(rows)


def make_weights(model: Model, kind: str) -> Weights:
    """The operator's weights, random, in its order."""
    made: Weights = []
    for n, k in ((2 * model.width, model.hidden), (model.hidden, model.width)):
        shape = (model.experts, n, k)
        if kind == "bf16":
            weight = torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_().mul_(1 / math.sqrt(k))
            made += [weight, None, None, None, None, None]
            continue
        groups = (model.experts, n, k // 32)
        scale = (torch.rand(groups, device="cuda") + 0.5) / 4 / math.sqrt(k)
        made += [
            torch.randint(0, 256, (model.experts, n, k // 2), dtype=torch.uint8, device="cuda"),
            scale.to(torch.float16), torch.randint(4, 12, groups, dtype=torch.uint8, device="cuda"), None, None, None,
        ]  # fmt: skip
    return made


def measure(cell: Cell, weights: Weights, timer: Timer) -> list[Row]:
    """Our kernels, and of bf16 weights PyTorch's grouped products, compiled."""
    model, few = cell.model, cell.tokens in FEW
    problem = model.problem(cell.tokens, cell.weights)
    # Of few tokens each call reads other experts, those of all calls more than the cache holds.
    sets = 32 if few else 2
    x = torch.randn(cell.tokens, model.hidden, dtype=torch.bfloat16, device="cuda")
    indices = [torch.rand(cell.tokens, model.experts, device="cuda").topk(model.top_k).indices for _ in range(sets)]
    routing = torch.softmax(torch.randn(cell.tokens, model.top_k, device="cuda"), 1)
    device = LocalDevice.current()
    pdl, group_size = int(supports_pdl(device)), problem.group_size

    def ours(how: Launch, kind: str, index: int) -> Tensor:
        made: Tensor = torch.ops.etcuda.experts(
            x, indices[index], routing, *weights, group_size, group_size, "silu", kind, how.to_args()
        )
        return made

    some = slice(0, _CHECKED)
    expected = experts_reference(
        x[some], indices[0][some], routing[some], *weights, group_size, group_size, "silu", "exact"  # type: ignore[arg-type]
    )  # fmt: skip
    needs = cost(problem)
    row = functools.partial(Row, model.name, cell.weights, cell.tokens, nbytes=needs.nbytes, flops=needs.flops)
    how = choose(problem, cell.tokens, device.shared_memory_per_block, pdl)
    call = functools.partial(ours, how, "int8" if few else "exact")
    rows = [_timed(row, "etcuda", str(how), call, expected, sets, timer)]
    if not few and device.arch == ARCH and grouped.refuse(problem, x.dtype) is None:
        # All of its rows are compared with those of the other kernel, whose first ones were compared with fp32.
        hopper, others = HopperLaunch(device.num_sms, pdl), call(0)
        call = functools.partial(ours, hopper, "int8")
        rows.append(_timed(row, "etcuda, CUDA C++", str(hopper), call, others, sets, timer))
    if cell.weights == "bf16":
        compiled = torch.compile(_grouped, dynamic=False)

        def theirs(index: int) -> Tensor:
            made: Tensor = compiled(x, indices[index], routing, weights[0], weights[6])
            return made

        rows.append(_timed(row, "torch grouped_mm, compiled", "", theirs, expected, sets, timer))
    return rows


def _timed(
    row: Callable[..., Row], engine: str, choice: str, call: Callable[[int], Tensor], expected: Tensor, sets: int,
    timer: Timer,
) -> Row:  # fmt: skip
    try:
        got = call(0)[: len(expected)].float()
    except RuntimeError as error:
        return row(engine, choice=choice, reason=f"{type(error).__name__}: {str(error)[:200]}")
    error = float((got - expected.float()).norm() / expected.float().norm())
    if not error < max(MOST_ERROR.values()):
        return row(engine, choice=choice, error=error, reason=f"relative error {error:.2e}")
    times = timer.graph_us(call, sets, _REPETITIONS)
    return row(engine, choice=choice, error=error, us=times.median_us, spread_us=times.spread_us)


def _grouped(x: Tensor, indices: Tensor, routing: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """As transformers computes experts by ``grouped_mm``."""
    tokens, top_k = indices.shape
    experts, order = torch.sort(indices.reshape(-1))
    counts = torch.histc(experts.int(), bins=len(gate_up), min=0, max=len(gate_up) - 1)
    ends = torch.cumsum(counts, 0, dtype=torch.int32)
    gate, up = functional.grouped_mm(x[order // top_k], gate_up.transpose(1, 2), offs=ends).chunk(2, -1)
    products = functional.grouped_mm(functional.silu(gate) * up, down.transpose(1, 2), offs=ends)
    products = products * routing.reshape(-1)[order].unsqueeze(1)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=x.device)
    result: Tensor = products[back].view(tokens, top_k, -1).sum(1).to(x.dtype)
    return result


def _read_ceiling(timer: Timer) -> float:
    data: Any = torch.zeros(_READ_BYTES // 4, device="cuda")
    return _READ_BYTES / timer.graph_us(lambda _: data.sum(), 4, _REPETITIONS).median_us * 1e6

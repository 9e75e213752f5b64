"""Runs the benchmark: correctness first, then time in a CUDA graph, cold."""

from __future__ import annotations

import functools
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.recurrent import engines, shapes
from benchmarks.recurrent.engines import UnsupportedError, WholeLayer
from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.common.timing import Timer
from etcuda.kernels.common.tuner import environment
from etcuda.kernels.recurrent import problem as calls
from etcuda.kernels.recurrent.reference.conv import causal_conv_reference
from etcuda.kernels.recurrent.reference.delta import gated_delta_rule_reference
from etcuda.kernels.recurrent.reference.layer import gated_delta_layer_reference
from etcuda.kernels.recurrent.reference.scan import selective_scan_reference

MOST_ERROR = 2e-2
_COLD_BYTES = 200 << 20
_READ_BYTES = 4 << 30
Row = dict[str, Any]


class Bench:
    """Measures, and keeps rows: cell, engine, microseconds, bytes, flops, error against the reference, or a reason."""

    def __init__(self, out: pathlib.Path) -> None:
        self.out, self.timer, self.rows = out, Timer(), list[Row]()
        self.value: dict[str, Any] = {
            "environment": environment(LocalDevice.current(), "CUDA graph, cold, median"), "rows": self.rows
        }  # fmt: skip
        big = torch.zeros(_READ_BYTES // 2, dtype=torch.bfloat16, device="cuda")
        read = self.timer.plain_us(lambda _: big.sum(), 3, 5).median_us
        a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        product = self.timer.plain_us(lambda _: a @ b, 5, 5).median_us
        self.value["ceilings"] = {
            "read_bytes_per_s": _READ_BYTES / read * 1e6, "flops_per_s": 2 * 8192**3 / product * 1e6
        }  # fmt: skip

    def cell(
        self,
        name: str,
        make: Callable[[], dict[str, Any]],
        expected: Callable[..., tuple[Tensor, ...]],
        nbytes: int,
        flops: int,
        found: dict[str, Callable[[], Callable[[dict[str, Any]], Any]]],
    ) -> None:
        """Every engine on the same inputs, several sets of which are larger than the cache together."""
        torch.manual_seed(0)
        sets = [make() for _ in range(max(2, min(64, math.ceil(_COLD_BYTES / nbytes))))]
        wanted = expected(**sets[0])[0].float()
        # What is timed writes to the states of the sets.
        states = {key: sets[0][key].clone() for key in ("state", "conv") if key in sets[0]}
        for engine, build in found.items():
            row: Row = {"cell": name, "engine": engine, "nbytes": nbytes, "flops": flops}
            try:
                call = build()
                got = call(sets[0] | {key: state.clone() for key, state in states.items()})
                got = (got[0] if isinstance(got, tuple) else got).float()
                got = got.transpose(1, 2) if got.shape != wanted.shape else got
                row["error"] = float((got - wanted).norm() / wanted.norm())
                # PyTorch's convolution begins a sequence; ours goes on.
                if engine != "torch.compile of conv1d" and not row["error"] <= MOST_ERROR:
                    raise UnsupportedError(f"wrong: relative error {row['error']:.1e}")
                self._time(row, functools.partial(_on_set, call, sets), len(sets))
            except UnsupportedError as reason:
                row["reason"] = str(reason)
            except Exception as error:  # A peer that fails is a row of the table; ours must not.
                if engine.startswith("etcuda"):
                    raise
                row["reason"] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
            self.add(row)

    def _time(self, row: Row, call: Callable[[int], Any], sets: int) -> None:
        for index in range(3):
            call(index)
        torch.cuda.synchronize()
        times = self.timer.graph_us(call, max(sets, 4), 9)
        row |= {"us": times.median_us, "spread_us": times.spread_us}

    def whole(self, quantized: bool, layer: str, build: Callable[[], Any], state_dtype: torch.dtype) -> None:
        """A whole decode step of a layer."""
        name = f"layer, one token, {'int4' if quantized else 'bf16'} weights, {_name(state_dtype)} state"
        count = 24 if quantized else 4
        row: Row = {"cell": name, "engine": layer, "flops": 0}
        try:
            layers = [WholeLayer(quantized, build()) for _ in range(count)]
            sets = [shapes.layer_inputs(state_dtype) for _ in range(count)]
            hidden = shapes.normal(1, shapes.HIDDEN)
            state = sum(2 * sets[0][key].nbytes for key in ("state", "conv")) + sets[0]["weight"].nbytes
            row["nbytes"] = layers[0].nbytes + state
            self._time(row, lambda index: layers[index % count](hidden, sets[index % count]), count)
        except Exception as error:  # Of a compiler; ours must not fail.
            if layer.startswith("etcuda"):
                raise
            row["reason"] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
        self.add(row)

    def add(self, row: Row) -> None:
        """Keeps a row, and writes all."""
        self.rows.append(row)
        print(row, flush=True)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(self.value, indent=1) + "\n")
        torch.cuda.empty_cache()


def _on_set(call: Callable[[dict[str, Any]], Any], sets: list[dict[str, Any]], index: int) -> Any:
    return call(sets[index % len(sets)])


def _name(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]


def run_rings(bench: Bench) -> None:
    """Measures what rings of states cost: a step that writes beside the state that it reads, and a few tokens with the
    state behind each."""
    given = shapes.layer_inputs(torch.float32)
    cost = calls.delta_cost(calls.layer_problem(given["x"], given["z"], given["state"]))
    extra = 2 * given["conv"].nbytes + given["weight"].nbytes
    bench.cell(
        "step between projections, fp32 state, in a ring of 8",
        lambda: shapes.in_ring(shapes.layer_inputs(torch.float32), 8), gated_delta_layer_reference,
        cost.nbytes + extra, cost.flops, {"etcuda": engines.our_layer},
    )  # fmt: skip
    for rows in shapes.ROWS:
        given = shapes.in_ring(shapes.delta_inputs(rows, torch.float32), rows)
        cost = calls.delta_cost(calls.delta_problem(given["q"], given["v"], given["state"]))
        bench.cell(
            f"gated delta rule, {rows} tokens, each state kept",
            lambda rows=rows: shapes.in_ring(shapes.delta_inputs(rows, torch.float32), rows),
            gated_delta_rule_reference, cost.nbytes, cost.flops, {"etcuda": lambda: engines.our("gated_delta_rule")},
        )  # fmt: skip
        for scan in shapes.SCANS:
            given = shapes.in_ring(shapes.scan_inputs(scan, rows), rows)
            cost = calls.scan_cost(calls.scan_problem(given["x"], given["b"], given["state"]))
            bench.cell(
                f"selective scan of {scan.name}, {rows} tokens, each state kept",
                lambda scan=scan, rows=rows: shapes.in_ring(shapes.scan_inputs(scan, rows), rows),
                selective_scan_reference, cost.nbytes, cost.flops, {"etcuda": lambda: engines.our("selective_scan")},
            )  # fmt: skip


def run(out: pathlib.Path, peers: str = "all", rings_alone: bool = False) -> None:
    """Measures everything.

    Args:
        out: the JSON file.
        peers: "none", "fla" for flash-linear-attention, "all" for what torch.compile makes of formulas too.
        rings_alone: measure rings of states and nothing else.
    """
    compiled = peers == "all"
    bench = Bench(out)
    run_rings(bench)
    if rings_alone:
        return
    for dtype in (torch.bfloat16, torch.float32):
        given = shapes.layer_inputs(dtype)
        cost = calls.delta_cost(calls.layer_problem(given["x"], given["z"], given["state"]))
        extra = 2 * given["conv"].nbytes + given["weight"].nbytes
        found: dict[str, Any] = {"etcuda": engines.our_layer}
        if compiled:
            found["torch.compile of our formula"] = engines.formula_layer
        bench.cell(
            f"step between projections, {_name(dtype)} state", functools.partial(shapes.layer_inputs, dtype),
            gated_delta_layer_reference, cost.nbytes + extra, cost.flops, found,
        )  # fmt: skip
        for quantized in (False, True):
            bench.whole(quantized, "etcuda", engines.our_layer, dtype)
        if compiled:
            bench.whole(False, "torch.compile of our formula, our products", engines.formula_layer, dtype)
    for length in (1, 2048, shapes.PREFILL):
        given = shapes.delta_inputs(length, torch.float32)
        cost = calls.delta_cost(calls.delta_problem(given["q"], given["v"], given["state"]))
        found = {"etcuda": lambda: engines.our("gated_delta_rule")}
        if peers != "none":
            found["flash-linear-attention"] = engines.fla_step if length == 1 else engines.fla_chunk
            if compiled and length == shapes.PREFILL:
                found["torch.compile of transformers'"] = engines.transformers_chunk
        bench.cell(
            f"gated delta rule, {length} tokens", functools.partial(shapes.delta_inputs, length, torch.float32),
            gated_delta_rule_reference, cost.nbytes, cost.flops, found,
        )  # fmt: skip
        given = shapes.conv_inputs(length)
        conv = calls.conv_cost(calls.conv_problem(given["x"], given["weight"]))
        found = {"etcuda": lambda: engines.our("causal_conv")}
        if compiled and length > 1:
            found["torch.compile of conv1d"] = engines.formula_conv
        bench.cell(
            f"convolution, {length} tokens", functools.partial(shapes.conv_inputs, length), causal_conv_reference,
            conv.nbytes, conv.flops, found,
        )  # fmt: skip
    for scan in shapes.SCANS:
        for length in (1, shapes.PREFILL):
            given = shapes.scan_inputs(scan, length)
            cost = calls.scan_cost(calls.scan_problem(given["x"], given["b"], given["state"]))
            found = {"etcuda": lambda: engines.our("selective_scan")}
            if compiled and length > 1:
                found["torch.compile of transformers'"] = engines.transformers_scan
            bench.cell(
                f"selective scan of {scan.name}, {length} tokens",
                functools.partial(shapes.scan_inputs, scan, length), selective_scan_reference,
                cost.nbytes, cost.flops, found,
            )  # fmt: skip

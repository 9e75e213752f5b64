"""Per-call overhead and latency against torch eager, torch.compile and AOTInductor's own package.

    python -m benchmarks calls --runner out/bench/bench_calls

Wants a GPU. Everything runs in one go on one machine; a row appears only if its output matches eager.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import tempfile
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import CASES, CallCase
from benchmarks.timing import CALLS, WARMUP, CallTimes, Function, HostCall, device_time_us, time_calls
from examples.cpp.session import from_bytes, to_bytes


@dataclasses.dataclass(frozen=True)
class Row:
    """One engine on one case. ``error`` is relative to eager on the same GPU."""

    case: str
    engine: str
    cuda_graph: bool
    times: CallTimes
    error: float
    device_us: float | None = None


def run(runner: pathlib.Path, arch: str) -> list[Row]:
    """All rows; device time is taken once per case, of torch.compile's kernels, and stands for every engine."""
    rows = []
    for case in CASES:
        rows += _run_case(case, runner, arch)
    return rows


def _run_case(case: CallCase, runner: pathlib.Path, arch: str) -> list[Row]:
    model, inputs = case.build(), case.inputs()
    on_gpu = case.build().cuda()
    eager = HostCall(on_gpu, inputs)
    expected = eager().clone()
    rows = [Row(case.name, "torch eager", False, time_calls(eager), 0.0)]
    device_us = None
    for engine, cuda_graph, function in _peers(on_gpu, inputs):
        call = HostCall(function, inputs)
        rows.append(Row(case.name, engine, cuda_graph, time_calls(call), _checked(case, engine, call(), expected)))
        if engine == "torch.compile":
            device_us = device_time_us(call)
        torch.compiler.reset()
    for cuda_graph, (times, output) in _run_ours(model, inputs, expected, runner, arch).items():
        engine = "etcuda" if cuda_graph else "etcuda, no graph"
        rows.append(Row(case.name, engine, cuda_graph, times, _checked(case, engine, output, expected)))
    return [dataclasses.replace(row, device_us=device_us) for row in rows]


def _peers(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[tuple[str, bool, Function]]:
    staged = tuple(tensor.cuda() for tensor in inputs)
    program = torch.export.export(model, staged)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        package = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/model.pt2")
        loaded = torch._inductor.aoti_load_package(package)
    return [
        ("torch.compile", False, torch.compile(model)),
        ("torch.compile, reduce-overhead", True, torch.compile(model, mode="reduce-overhead")),
        ("AOTInductor package", False, loaded),
    ]


def _run_ours(
    model: nn.Module, inputs: tuple[Tensor, ...], like: Tensor, runner: pathlib.Path, arch: str
) -> dict[bool, tuple[CallTimes, Tensor]]:
    """Times and output with CUDA graphs and without."""
    from executorch.exir import to_edge_transform_and_lower

    from etcuda import CudaPartitioner

    program = torch.export.export(model, inputs)
    lowered = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner(target=arch)])
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        lowered.to_executorch().save(str(folder / "model.pte"))
        words = []
        for place, tensor in enumerate(inputs):
            (folder / f"{place}.bin").write_bytes(to_bytes(tensor))
            dtype = str(tensor.dtype).removeprefix("torch.")
            words.append(f"{dtype}:{'x'.join(map(str, tensor.shape))}:{folder}/{place}.bin")
        command = [runner, folder / "model.pte", "forward", str(WARMUP), str(CALLS), folder / "out.bin", *words]
        return {graphs: _time_ours(command, folder / "out.bin", like, graphs) for graphs in (True, False)}


def _time_ours(
    command: list[str | pathlib.Path], output: pathlib.Path, like: Tensor, graphs: bool
) -> tuple[CallTimes, Tensor]:
    environment = {**os.environ, "ETCUDA_CUDA_GRAPHS": str(int(graphs))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return CallTimes.of(measured["host_ns"]), from_bytes(output.read_bytes(), like)


def _checked(case: CallCase, engine: str, output: Tensor, expected: Tensor) -> float:
    error = float((output.double() - expected.double()).norm() / expected.double().norm())
    if not error <= case.tolerance:
        raise RuntimeError(
            f"{engine} on {case.name}: relative error {error:.2e} against eager, expected at most "
            f"{case.tolerance:.0e}; a wrong result has no speed."
        )
    return error

"""CUDA graphs on the local GPU: a call that is launched as a graph has the bytes of one that is not."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from examples.running import gpu_arch
from tests.gpu.native_programs import compile_program

Export = Callable[[str, str], pathlib.Path]

STEPS = 10_000
# From there on nothing may grow: every shape has been captured in every session.
SETTLED = 3
SLACK = 1 << 20

DECODER = [
    "decode|int64:1x1:256|int64:1:64",
    "prefill|int64:1x6:256|int64:6:64",
    "prefill|int64:1x13:256|int64:13:64",
    "prefill|int64:1x32:256|int64:32:64",
]
MLP = [f"forward|bfloat16:{rows}x64:0" for rows in (1, 7, 8, 64)]


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The program that compares graphs with plain calls."""
    return compile_program("graphs", tmp_path_factory.mktemp("native"))


@pytest.fixture
def program(exported: Export) -> Callable[[str], pathlib.Path]:
    """``program(case)`` is the ``.pte`` for this GPU: from the folder in ETCUDA_PROGRAMS, or exported here."""
    arch = gpu_arch()
    assert arch is not None

    def find(name: str) -> pathlib.Path:
        folder = os.environ.get("ETCUDA_PROGRAMS")
        return pathlib.Path(folder) / f"{name}-{arch}.pte" if folder else exported(name, arch)

    return find


def check(
    graphs: pathlib.Path, steps: int, programs: Sequence[pathlib.Path], calls: Sequence[str], mode: str = "check"
) -> list[Any]:
    command = [graphs, mode, str(steps), *programs, "--", *calls]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def assert_flat(points: list[Any]) -> None:
    settled = points[SETTLED]
    assert points[-1]["captures"] == settled["captures"], points
    assert points[-1]["in_use"] == settled["in_use"], points
    assert points[-1]["held"] == settled["held"] > 0, points
    assert points[-1]["gpu_free"] >= settled["gpu_free"] - SLACK, points
    assert points[-1]["resident"] <= settled["resident"] + SLACK, points


def test_two_programs_in_sessions(graphs: pathlib.Path, program: Callable[[str], pathlib.Path]) -> None:
    points = check(graphs, STEPS, [program("decoder-bf16"), program("decoder-fp32")], DECODER)
    # Two programs, four calls, three states.
    assert points[-1]["captures"] == points[-1]["live"] == 24, points
    assert points[-1]["refusals"] == 0, points
    assert points[-1]["replays"] >= STEPS - 24 * 3, points
    assert_flat(points)


def test_shapes_without_state(graphs: pathlib.Path, program: Callable[[str], pathlib.Path]) -> None:
    points = check(graphs, 2_000, [program("mlp-bf16")], MLP)
    assert points[-1]["refusals"] == 0, points
    assert points[-1]["replays"] > 1_900, points
    assert_flat(points)


def test_quantized_decoder(graphs: pathlib.Path, program: Callable[[str], pathlib.Path]) -> None:
    points = check(graphs, 2_000, [program("decoder-int4-bf16")], DECODER)
    assert points[-1]["refusals"] == 0, points
    assert points[-1]["replays"] > 1_500, points


def test_threads_capture_side_by_side(graphs: pathlib.Path, program: Callable[[str], pathlib.Path]) -> None:
    (last,) = check(graphs, 20, [program("mlp-bf16")], MLP, mode="threads")
    assert last["refusals"] == 0, last
    # Four threads, each call twice without a graph and four times with one.
    assert last["replays"] == 4 * 20 * len(MLP) * 4, last
    assert last["live"] == last["held"] == 0, last


def test_compute_sanitizer_is_clean(graphs: pathlib.Path, program: Callable[[str], pathlib.Path]) -> None:
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not pathlib.Path(sanitizer).is_file():
        pytest.skip("compute-sanitizer is not installed")
    command = [sanitizer, "--error-exitcode", "7", graphs, "check", "60", program("decoder-bf16"), "--", *DECODER[:2]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "ERROR SUMMARY: 0 errors" in done.stdout + done.stderr
    last = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")][-1]
    assert last["replays"] > 0, last

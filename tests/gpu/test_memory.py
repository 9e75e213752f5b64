"""Loading, running and unloading leaves memory as it was, on the host and on the GPU."""

from __future__ import annotations

import json
import pathlib
import subprocess
from collections.abc import Callable

import pytest

from examples.running import gpu_arch
from tests.gpu.native_programs import compile_program

Export = Callable[[str, str], pathlib.Path]

CYCLES = 200
# The heap settles in the first cycles; from there on nothing may grow. Allocators round, hence the slack.
SETTLED = 100
SLACK = 1 << 20


@pytest.fixture(scope="session")
def cycles(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The program that loads, runs and unloads."""
    return compile_program("cycles", tmp_path_factory.mktemp("native"))


@pytest.mark.parametrize(
    ("name", "method", "inputs"),
    [("mlp-bf16", "forward", ["bfloat16:8x64"]), ("decoder-bf16", "decode", ["int64:1x1", "int64:1"])],
)
def test_200_cycles_leave_memory_flat(
    name: str, method: str, inputs: list[str], exported: Export, cycles: pathlib.Path
) -> None:
    arch = gpu_arch()
    assert arch is not None
    done = subprocess.run(
        [cycles, exported(name, arch), method, str(CYCLES), *inputs], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    points = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert points[-1]["cycles"] == CYCLES
    settled = next(point for point in points if point["cycles"] == SETTLED)
    assert all(point["in_use"] == 0 for point in points), points
    assert all(point["gpu_free"] > 0 for point in points), points
    assert points[-1]["gpu_free"] >= settled["gpu_free"] - SLACK, points
    assert points[-1]["resident"] <= settled["resident"] + SLACK, points

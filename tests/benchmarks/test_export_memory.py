"""What measures the memory of an export."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import time

import torch

from benchmarks.export_memory import SHAPES, Decoder, write_weights
from benchmarks.process_memory import PeakMemory, Usage, usage
from etcuda import load_weights

SIZE = 64 << 20


def test_a_peak_that_is_over_is_seen_once() -> None:
    before = usage()
    with PeakMemory(0.001, proportional=True) as memory:
        block = b"\1" * SIZE
        deadline = time.monotonic() + 30
        while memory._peak.anonymous < before.anonymous + SIZE and time.monotonic() < deadline:
            time.sleep(0.001)
        del block
        first, second = memory.take(), memory.take()
    assert first.anonymous >= before.anonymous + SIZE
    assert first.total >= first.anonymous
    assert 0 < first.proportional <= first.total + SIZE
    assert second.anonymous < first.anonymous - SIZE // 2


def test_processes_that_were_started_count() -> None:
    code = f"block = b'1' * {SIZE}; print('ready', flush=True); input()"
    alone = usage(descendants=False)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert usage().anonymous >= usage(descendants=False).anonymous + SIZE
        assert usage(descendants=False).anonymous < alone.anonymous + SIZE
        process.communicate(b"\n")


def test_usage_in_words() -> None:
    assert str(Usage(1 << 30, 3 << 29)) == "anonymous 1.00, total 1.50 GiB"


def test_weights_fit_the_model(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "weights.safetensors"
    write_weights(path, "tiny")
    model = Decoder("tiny")
    model.load_state_dict(load_weights(path), assign=True)
    hidden, _, _, layers = SHAPES["tiny"]
    assert len(model.layers) == layers
    assert bool(torch.isfinite(model(torch.ones(2, hidden, dtype=torch.bfloat16))).all())

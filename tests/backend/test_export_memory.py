"""An export holds no copy of a model whose weights are mapped from a file, nor the file's pages."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from tests.exhaustive import only

# A process of its own: what others in this one keep or free would be measured too.
EXPORT = """
import pathlib, sys
import torch
from executorch.exir import to_edge_transform_and_lower
from benchmarks.export_memory import SHAPES, Decoder, write_weights
from benchmarks.process_memory import PeakMemory, usage
from etcuda import CudaPartitioner, load_weights, save_program

folder = pathlib.Path(sys.argv[1])
write_weights(folder / "weights.safetensors", "wide")
model = Decoder("wide").eval()
model.load_state_dict(load_weights(folder / "weights.safetensors"), assign=True)
model.requires_grad_(False)
x = torch.zeros(1, SHAPES["wide"][0], dtype=torch.bfloat16)
program = torch.export.export(model, (x,))
before = usage(descendants=False)
with PeakMemory(0.005, descendants=False) as memory:
    options = {"weights": sys.argv[2]}
    lowered = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner("host", options)]).to_executorch()
    save_program(lowered, folder / "model.pte")
    peak = memory.take()
print("grown", peak.anonymous - before.anonymous, peak.total - before.total)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["pte", only(False, "ptd")])
def test_the_exporting_process_does_not_grow_with_the_model(tmp_path: pathlib.Path, where: str) -> None:
    command = [sys.executable, "-c", EXPORT, str(tmp_path), where]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=pathlib.Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    stored = tmp_path / ("model.pte" if where == "pte" else "model.ptd")
    assert stored.stat().st_size > 450 << 20
    anonymous, total = map(int, done.stdout.split("grown ")[1].split())
    # Modules and graphs, 16 MiB when it was tried; with copies of the weights it was 750 and 1150.
    assert anonymous < 150 << 20
    assert total < 200 << 20

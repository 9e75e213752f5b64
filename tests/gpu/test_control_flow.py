"""Control flow on the local GPU, whose counters and conditions the host reads."""

from __future__ import annotations

import pathlib

import torch
from executorch.exir import to_edge_transform_and_lower

from etcuda import CudaPartitioner, save_program
from examples.cpp.session import run_calls
from examples.models import Call
from examples.running import gpu_arch
from tests.backend.loops import Joined, exported


def test_loops_compute_what_python_does(tmp_path: pathlib.Path, run_session: pathlib.Path) -> None:
    arch = gpu_arch()
    assert arch is not None
    torch.manual_seed(0)
    model = Joined()
    lowered = to_edge_transform_and_lower(exported(model), partitioner=[CudaPartitioner(arch)])
    save_program(lowered.to_executorch(), tmp_path / "loops.pte")
    inputs = [(torch.rand(5, 8) * sign, torch.tensor(count)) for count, sign in ((0, 1), (1, -1))]
    with torch.no_grad():
        expected = [torch.cat([each.reshape(-1).float() for each in model.expected(*given)]) for given in inputs]
    calls = [Call("forward", given) for given in inputs]
    got = run_calls(run_session, tmp_path / "loops.pte", calls, like=expected)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)

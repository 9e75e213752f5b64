"""The kernels of int4 and int8 weights on the local GPU: every check of tests/kernels, and what is chosen."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from etcuda.kernels.int4 import table
from etcuda.kernels.int4.problem import MAX_TOKENS, LinearProblem
from etcuda.kernels.int4.select import LocalDevice, choose, choose_matmul, choose_matvec, run_config
from etcuda.kernels.int4.shapes import problems
from etcuda.kernels.int4.tune import call_kernel, expected, format_of, make_activations, make_weight
from tests.kernels.linear_checks import *  # noqa: F403  the tests and fixtures of the interpreter, on the GPU

# Relative to fp32 with the dequantised weight: rounding random activations in blocks of 32 alone costs 5.4e-3, and
# results in bf16 cost 1.7e-3.
MOST = {"int8": 6e-3, "exact": 2e-3}
SMALL = ((4096, 4096), (5376, 21504), (1024, 2048))


def _error(problem: LinearProblem, overlap: int) -> float:
    torch.manual_seed(0)
    device = LocalDevice.current()
    form, stored = make_weight(problem, problem.n)
    x = make_activations(problem)
    torch.cuda.synchronize()
    got = call_kernel(problem, choose(problem, device).config, x, form, stored, device.num_sms, overlap)
    wanted = expected(problem, x, form, stored)
    return float((got.float() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("shape", SMALL, ids=str)
@pytest.mark.parametrize("m", [1, 7, 9, 100])
def test_what_is_chosen_is_accurate(shape: tuple[int, int], m: int) -> None:
    for activation in ("int8", "exact"):
        problem = LinearProblem(m, *shape, activation=activation)
        assert _error(problem, 0) < MOST[activation]
        assert _error(problem, 1) < MOST[activation]


@pytest.mark.parametrize("m", [1, 5, 64])
@pytest.mark.parametrize("n", [1000, 4097])
def test_sizes_that_were_not_measured(m: int, n: int) -> None:
    for k in (96, 1504, 5376):
        assert _error(LinearProblem(m, n, k), 0) < MOST["int8"]
        assert _error(LinearProblem(m, n, k, bits=8, offset="symmetric"), 0) < MOST["int8"]


def test_kernels_agree_where_they_meet() -> None:
    device = LocalDevice.current()
    for m in (MAX_TOKENS, 1):
        problem = LinearProblem(m, 4096, 4096)
        form, stored = make_weight(problem, problem.n)
        x = make_activations(problem)
        torch.cuda.synchronize()
        results = [
            run_config(4, form, x, stored, None, "int8", pick(problem, device).config, device.num_sms, 0).float()
            for pick in (choose_matvec, choose_matmul)
        ]
        # Both rounded to bf16.
        assert float((results[0] - results[1]).norm() / results[0].norm()) < 3e-3


def test_the_operator_in_a_cuda_graph_and_without_rows() -> None:
    problem = LinearProblem(3, 1024, 2048)
    form, stored = make_weight(problem, problem.n)
    x = make_activations(problem)
    eager = torch.ops.etcuda.int4_linear(x, *stored, None, 32, "int8")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = torch.ops.etcuda.int4_linear(x, *stored, None, 32, "int8")
    out.zero_()
    graph.replay()
    assert torch.equal(out, eager)
    assert torch.ops.etcuda.int4_linear(x[:0], *stored, None, 32, "int8").shape == (0, 1024)
    assert form == format_of(problem)


def test_concatenated_weights_give_the_same() -> None:
    problem = LinearProblem(1, 4096, 4096)
    _, stored = make_weight(problem, problem.n)
    for m in (1, 4, 16, 300):
        x = make_activations(dataclasses.replace(problem, m=m))
        whole = torch.ops.etcuda.int4_linear(x, *stored, None, 32, "int8")
        halves = []
        for rows in (slice(0, 2048), slice(2048, 4096)):
            parts = [None if part is None else part[rows] for part in stored]
            halves.append(torch.ops.etcuda.int4_linear(x, *parts, None, 32, "int8"))
        difference = (whole.float() - torch.cat(halves, 1).float()).norm() / whole.float().norm()
        assert float(difference) < 3e-3


def test_the_table_of_this_gpu_is_used() -> None:
    device = LocalDevice.current()
    if table.load(4, device.arch) is None:
        pytest.skip(f"no table for {device.arch}")
    assert "measured on" in choose(problems(4)[0][1], device).source

"""The kernels of quantised weights on the local GPU: every check of tests/kernels, and what is chosen."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from etcuda import Int4CoalescedConfig, Int8CoalescedConfig
from etcuda.kernels.activations.launch import quantize
from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.formats.registry import find
from etcuda.kernels.formats.stored import StoredWeight
from etcuda.kernels.linear import launch
from etcuda.kernels.linear.choose import table
from etcuda.kernels.linear.choose.configs import MatvecConfig, matvec_candidates, padded
from etcuda.kernels.linear.choose.select import (
    choose,
    choose_matmul,
    choose_matvec,
    matvec_limit,
)
from etcuda.kernels.linear.choose.shapes import problems
from etcuda.kernels.linear.choose.tune import call_kernel, expected, make_activations, make_weight
from etcuda.kernels.linear.problem import MAX_TOKENS, LinearProblem
from etcuda.kernels.linear.run import run_config
from etcuda.options import BackendConfig
from etcuda.target import TARGETS
from tests.kernels.linear.linear_cases import poison as poison  # The fixture, for every test here.
from tests.kernels.linear.linear_checks import TestLinearKernels as TestLinearKernels  # What the interpreter runs too.
from tests.passes.linear.quantized_programs import MLP, export, lowered, make, quantized

# Relative to fp32 with the dequantised weight: rounding random activations in blocks of 32 alone costs 5.4e-3, and
# results in bf16 cost 1.7e-3.
MOST = {"int8": 6e-3, "exact": 2e-3}
SMALL = ((4096, 4096), (5376, 21504), (1024, 2048))


def _error(problem: LinearProblem, pdl: int) -> float:
    torch.manual_seed(0)
    device = LocalDevice.current()
    weight_format, stored = make_weight(problem, problem.n)
    config = choose(problem, device).config
    wrong, all_ = 0.0, 0.0
    # One short row rounds by chance better or worse: what is bounded is the mean.
    for _ in range(max(1, 4096 // (problem.k * problem.m))):
        x = make_activations(problem)
        torch.cuda.synchronize()
        got = call_kernel(problem, config, x, weight_format, stored, device.num_sms, pdl)
        wanted = expected(problem, x, weight_format, stored)
        wrong += float((got.float() - wanted).square().sum())
        all_ += float(wanted.square().sum())
    return math.sqrt(wrong / all_)


def _stored(problem: LinearProblem) -> StoredWeight:
    weight_format, stored = make_weight(problem, problem.n)
    return StoredWeight(weight_format, *stored)


@pytest.mark.parametrize("shape", SMALL, ids=str)
@pytest.mark.parametrize("m", [1, 7, 9, 100])
def test_what_is_chosen_is_accurate(shape: tuple[int, int], m: int) -> None:
    for activation_dtype in ("int8", "exact"):
        problem = LinearProblem(m, *shape, activation_dtype=activation_dtype)
        assert _error(problem, 0) < MOST[activation_dtype]
        assert _error(problem, 1) < MOST[activation_dtype]


@pytest.mark.parametrize("m", [1, 5, 64])
@pytest.mark.parametrize("n", [1000, 4097])
def test_sizes_that_were_not_measured(m: int, n: int) -> None:
    for k in (96, 1504, 5376):
        assert _error(LinearProblem(m, n, k), 0) < MOST["int8"]
        assert _error(LinearProblem(m, n, k, "int8", offset="symmetric"), 0) < MOST["int8"]


def test_kernels_agree_where_one_gives_way_to_the_other() -> None:
    device = LocalDevice.current()
    for m in (MAX_TOKENS, 1):
        problem = LinearProblem(m, 4096, 4096)
        weight = _stored(problem)
        x = make_activations(problem)
        torch.cuda.synchronize()
        configs = choose_matvec(problem, device).config, choose_matmul(problem, device).config
        results = [run_config(weight, x, config, None, "int8", device.num_sms, 0).float() for config in configs]
        # Both round the result to bf16. The kernel in CUDA C++ does not quantize activations: both errors count there.
        most = math.hypot(MOST["int8"], 4e-3) if configs[1].warpgroups else 3e-3
        assert float((results[0] - results[1]).norm() / results[0].norm()) < most


def test_the_operator_in_a_cuda_graph_and_without_rows() -> None:
    problem = LinearProblem(3, 1024, 2048)
    weight_format, stored = make_weight(problem, problem.n)
    x = make_activations(problem)
    eager = torch.ops.etcuda.int4_linear(x, *stored, None, 32, "int8")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = torch.ops.etcuda.int4_linear(x, *stored, None, 32, "int8")
    out.zero_()
    graph.replay()
    assert torch.equal(out, eager)
    assert torch.ops.etcuda.int4_linear(x[:0], *stored, None, 32, "int8").shape == (0, 1024)
    assert weight_format == problem.weight_format


@pytest.mark.parametrize("k", [96, 4096, 5376, 21504])
@pytest.mark.parametrize(("m", "name"), [(1, "int4"), (4, "int4"), (1, "int8")])
def test_configurations_of_one_split_give_the_same_bits(m: int, name: str, k: int) -> None:
    """In fp32, where no rounding of the result hides a difference."""
    torch.manual_seed(0)
    device = LocalDevice.current()
    problem = LinearProblem(m, 1600, k, name, offset=find(name).tuned_offset)
    weight = _stored(problem)
    x = make_activations(problem)
    quantized_x = quantize(x, 0)
    first: dict[MatvecConfig, Tensor] = {}
    compared = 0
    for config in matvec_candidates(problem, device):
        values = quantized_x if config.quantized else x
        got = launch.matvec(weight, values, config.launch(padded(m), device.num_sms, 0), None, torch.float32)
        compared += config.split in first
        assert torch.equal(first.setdefault(config.split, got), got), config
    assert compared


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 9, reason="kernels wait from sm_90 on"
)
@pytest.mark.parametrize("m", [1, 4, 16, 100])
def test_kernels_that_wait_compute_the_same(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers behind one another in a graph, on inputs that change: a stale buffer holds another input's numbers."""
    # Without the poison: kernels that fill would stand between, and all would wait for them.
    monkeypatch.undo()
    device = LocalDevice.current()
    problem = LinearProblem(m, 4096, 4096)
    weights = [_stored(problem) for _ in range(3)]

    def layers(x: Tensor, pdl: int) -> list[Tensor]:
        made = []
        for weight in weights * 2:
            config = choose(problem, device, 1).config
            x = run_config(weight, x, config, None, "int8", device.num_sms, pdl)
            made.append(x)
        return made

    inputs = [make_activations(problem) for _ in range(4)]
    wanted = [[each.clone() for each in layers(x, 0)] for x in inputs]
    given = inputs[0].clone()
    layers(given, 1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = layers(given, 1)
    for turn in range(12):
        given.copy_(inputs[turn % 4])
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(got, wanted[turn % 4], strict=True)), turn


# N of the parts and K: query, key and value; gate and up; rows that lie elsewhere in a tile when they are joined.
JOINED = (((4096, 1024, 1024), 4096), ((21504, 21504), 5376), ((1004, 12, 200, 1), 2048))
ROWS = (*range(1, 9), 9, 16, 64, 300)


def _copy(weight: StoredWeight) -> StoredWeight:
    copies = {name: None if part is None else part.clone() for name, part in weight.components.items()}
    torch.cuda.synchronize()
    return StoredWeight(weight.format, **copies)  # type: ignore[arg-type]


@pytest.mark.parametrize("pdl", [0, 1])
@pytest.mark.parametrize("name", ["int4", "int8"])
@pytest.mark.parametrize(("sizes", "k"), JOINED, ids=str)
def test_joined_weights_give_the_bits_of_their_parts(sizes: tuple[int, ...], k: int, name: str, pdl: int) -> None:
    """What a compiled program runs for a joined weight, and what it runs for weights of their own."""
    torch.manual_seed(0)
    device = LocalDevice.current()
    whole = LinearProblem(1, sum(sizes), k, name, offset=find(name).tuned_offset)
    joined = _stored(whole)
    ends = list(itertools.accumulate(sizes))
    spans = list(zip([0, *ends[:-1]], ends, strict=True))

    def product(problem: LinearProblem, x: Tensor, weight: StoredWeight) -> Tensor:
        config = choose(problem, device, pdl).config
        return run_config(weight, x, config, None, "int8", device.num_sms, pdl)

    for m in ROWS:
        problem = dataclasses.replace(whole, m=m)
        x = make_activations(problem)
        torch.cuda.synchronize()
        parts = [dataclasses.replace(problem, n=size) for size in sizes]
        alone = [product(part, x, _copy(joined.rows(*span))) for part, span in zip(parts, spans, strict=True)]
        if m <= matvec_limit(problem, device):
            assert torch.equal(product(problem, x, joined), torch.cat(alone, 1)), m
        for part, span, expected_part in zip(parts, spans, alone, strict=True):
            assert torch.equal(product(part, x, joined.rows(*span)), expected_part), (m, span)


@pytest.mark.parametrize("config", [Int4CoalescedConfig(), Int8CoalescedConfig()], ids=["int4", "int8"])
@pytest.mark.parametrize("m", ROWS)
def test_joined_products_of_a_program_give_the_bits_of_their_parts(m: int, config: Any) -> None:
    """The graph after the passes, with the joined weights and without, run on this GPU kernel by kernel."""
    target = BackendConfig(TARGETS[LocalDevice.current().arch])
    model = quantized(make(MLP, dim=512, hidden=1504, bias=True), config)
    x = torch.randn(m, 512).to(torch.bfloat16)
    program = export(model, x)
    apart = ("fuse_mlp", "fuse_qkv", "split_joined")
    results = []
    for without in ((), apart):
        # A copy: the program's own tensors stay where they are.
        module = copy.deepcopy(lowered(program, target, without=without).module(check_guards=False)).to("cuda")
        with torch.no_grad():
            (result,) = module(x.cuda())
        results.append(result)
    assert torch.equal(*results)


def test_the_table_of_this_gpu_is_used() -> None:
    device = LocalDevice.current()
    if table.load("int4", device.arch) is None:
        pytest.skip(f"no table for {device.arch}")
    assert "measured on" in choose(problems("int4")[0][1], device).source

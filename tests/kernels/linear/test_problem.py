"""A call in numbers: why no kernel serves it, and its floor."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch

from etcuda.kernels.activations.problem import quantize_cost, reorder_cost
from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.formats import registry
from etcuda.kernels.formats.int4 import INT4
from etcuda.kernels.formats.int8 import INT8
from etcuda.kernels.linear.choose.configs import MatmulConfig
from etcuda.kernels.linear.choose.select import matvec_limit
from etcuda.kernels.linear.problem import LinearProblem, cost, refuse, refuse_matvec
from tests.kernels.linear.linear_cases import Case

CASES = [
    Case(),
    Case(offset="minimum", group_size=128),
    Case("int8", offset="symmetric", storage="codes", group_size=16),
]


@pytest.mark.parametrize(
    ("change", "matvec", "any_kernel"),
    [
        ({}, None, None),
        ({"m": 9}, "at most 8 tokens, got 9", None),
        ({"activation_dtype": "exact"}, "activations are quantized to int8, got activation_dtype 'exact'", None),
        ({"k": 100}, "K is a multiple of 32, got 100", "K is a multiple of 32, got 100"),
        (
            {"format_name": "int8", "group_size": 16, "offset": "minimum"},
            "groups of 16 are symmetric, got offset minimum",
            "groups of 16 are symmetric, got offset minimum",
        ),
        ({"group_size": 300}, "a group is 16, .*, got 300", "a group is 16, .*, got 300"),
    ],
)
def test_reasons(change: dict[str, Any], matvec: str | None, any_kernel: str | None) -> None:
    problem = LinearProblem(**({"m": 1, "n": 64, "k": 256} | change))
    for got, wanted in ((refuse_matvec(problem), matvec), (refuse(problem), any_kernel)):
        assert (got is None) == (wanted is None)
        if wanted is not None:
            assert got is not None
            assert re.fullmatch(wanted, got)


def test_formats_that_no_kernel_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = LinearProblem(1, 64, 256)
    for kernels, matvec, any_kernel in (
        ((), "weights of matmul kernels are int8, got int4", "weights of matmul kernels are int8, got int4"),
        (("matmul",), "weights of matvec kernels are int8, got int4", None),
    ):
        records = {"int4": dataclasses.replace(INT4, kernels=frozenset(kernels)), "int8": INT8}
        monkeypatch.setattr(registry, "_RECORDS", records)
        assert (refuse_matvec(problem), refuse(problem)) == (matvec, any_kernel)
        # Without kernels, there are no launches to choose from: the formula computes it.
        assert matvec_limit(problem, LocalDevice("sm_90", 132, 227 << 10)) == 0


def test_the_kernel_for_warpgroups_wants_a_format_that_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    config = MatmulConfig(256, 16, 8, 16, 3, 1, 0, 4)
    problem = LinearProblem(16, 1024, 5376)
    assert config.serves(problem, "sm_90")
    assert not config.serves(problem, "sm_89")
    other = dataclasses.replace(INT4, kernels=frozenset({"matvec", "matmul"}))
    monkeypatch.setattr(registry, "_RECORDS", {"int4": other})
    assert not config.serves(problem, "sm_90")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_costs(case: Case) -> None:
    problem = LinearProblem(3, 64, 512, case.format_name, case.group_size, case.storage, case.offset)
    assert LinearProblem.of(case.format, 3, 64, 512, "int8", torch.bfloat16) == problem
    assert problem.weight_format == case.format
    assert problem.weight_bytes == case.format.nbytes(64, 512)
    assert cost(problem).nbytes == case.format.nbytes(64, 512) + 2 * 3 * (512 + 64)
    assert cost(problem).flops == 2 * 3 * 64 * 512
    assert quantize_cost(problem).nbytes == 3 * 512 * 3 + 3 * 16 * 8
    assert reorder_cost(problem).nbytes == 3 * (512 * 2 + 512 * 2 + 4)

"""Mixtures of experts: the formula on a CPU, kernels in Triton's interpreter, and what the operators refuse."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from etcuda.errors import KernelArgumentError, WeightFormatError
from etcuda.kernels.experts.configs import FewLaunch, HopperLaunch, ManyLaunch, choose, launch_of
from etcuda.kernels.experts.hopper import grouped
from etcuda.kernels.experts.problem import ExpertsProblem, refuse
from etcuda.kernels.experts.routing import RoutingProblem
from etcuda.kernels.experts.routing import refuse as refuse_routing
from tests.kernels.experts import routing_checks
from tests.kernels.experts.experts_checks import CASES, Case, check, int4, int8
from tests.kernels.interpreter import BROKEN, run_checks


@pytest.mark.slow
@pytest.mark.skipif(BROKEN, reason="the interpreter of this Triton fails with this NumPy")
def test_kernels_in_the_interpreter() -> None:
    run_checks("experts/interpreted.py")


on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the kernels compute it")


@on_cpu
@pytest.mark.parametrize("case", [*CASES, Case(tokens=90, top_k=3, experts=7), Case(dtype=torch.float32)], ids=str)
def test_the_reference(case: Case) -> None:
    check(case, case.arguments())


@on_cpu
@pytest.mark.parametrize("case", routing_checks.CASES, ids=str)
def test_the_reference_of_routing(case: routing_checks.Case) -> None:
    given = case.arguments()
    weights, chosen = torch.ops.etcuda.route_experts(**given)
    wanted, experts = routing_checks.expected(given)
    assert torch.equal(chosen.long(), experts)
    torch.testing.assert_close(weights, wanted.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (ExpertsProblem(1, 2, 8, 100, 64), "hidden is a multiple of 32, got 100"),
        (ExpertsProblem(1, 2, 8, 96, 40), "width is a multiple of 32, got 40"),
        (ExpertsProblem(1, 2, 8, 96, 36, 16, 0), "width is a multiple of 8, got 36"),
        (ExpertsProblem(1, 2, 8, 1 << 16, 64), "hidden is less than 65536, got 65536"),
        (ExpertsProblem(1, 65, 128, 64, 64), "top_k is from 1 to 64, got 65"),
        (ExpertsProblem(1, 2, 5000, 64, 64), "num_experts is from 1 to 4096, got 5000"),
        (ExpertsProblem(1, 2, 8, 64, 64, 8, 16, offset="minimum"), "groups of 16 are symmetric, got offset minimum"),
    ],
)
def test_problems_that_are_refused(problem: ExpertsProblem, reason: str) -> None:
    assert refuse(problem) == reason


@pytest.mark.parametrize(
    ("problem", "dtype", "reason"),
    [
        (ExpertsProblem(9, 2, 8, 256, 256, group_size=64), torch.bfloat16, "are of 4 bits in groups of 32 .* of 64"),
        (ExpertsProblem(9, 2, 8, 256, 256), torch.float16, "activations are bfloat16, got torch.float16"),
        (ExpertsProblem(9, 2, 8, 256, 256, activation_dtype="exact"), torch.bfloat16, "activation_dtype 'exact'"),
        (ExpertsProblem(9, 2, 8, 320, 256), torch.bfloat16, "hidden is a multiple of 256 below 65536, got 320"),
        (ExpertsProblem(9, 2, 8, 256, 384), torch.bfloat16, "width is a multiple of 256 below 65536, got 384"),
        (ExpertsProblem(9, 2, 8, 256, 256, down=int8()), torch.bfloat16, "one format, got .* of the second"),
        (ExpertsProblem(9, 2, 8, 256, 256, has_bias=True), torch.bfloat16, "no bias, got one"),
        (ExpertsProblem(9, 2, 8, 256, 256, activation="swiglu_oai"), torch.bfloat16, "silu.*got swiglu_oai"),
        (ExpertsProblem(9, 2, 512, 8192, 1024), torch.bfloat16, "gate_up has less than 4294967296 bytes, got 42949"),
    ],
)
def test_what_the_kernel_in_cuda_refuses(problem: ExpertsProblem, dtype: torch.dtype, reason: str) -> None:
    found = grouped.refuse(problem, dtype)
    assert found is not None
    assert re.search(reason, found)
    int4, bf16 = ExpertsProblem(9, 8, 256, 2048, 512), ExpertsProblem(9, 8, 256, 2048, 512, 16, 0, "", "", "exact")
    for served in (int4, bf16):
        assert grouped.refuse(served, torch.bfloat16) is None


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (RoutingProblem(1, 8, 9, 1, 1), "top_k is from 1 to 8, got 9"),
        (RoutingProblem(1, 8, 5, 4, 2), "top_k is from 1 to 4, got 5"),
        (RoutingProblem(1, 8, 2, 3, 1), "8 experts are groups of one size, got 3 groups"),
        (RoutingProblem(1, 8, 2, 4, 5), "top_groups is from 1 to the 4 groups, got 5"),
        (RoutingProblem(1, 0, 1, 1, 1), "experts are from 1 to 4096, got 0"),
    ],
)
def test_routing_that_is_refused(problem: RoutingProblem, reason: str) -> None:
    assert refuse_routing(problem) == reason


GOOD, STORED = Case().arguments(), Case(format=int4()).arguments()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": GOOD["x"].long()}, "experts: gate_up: expected the dtype of x, torch.int64"),
        ({"x": GOOD["x"][0]}, r"x: expected two dimensions \[tokens, hidden\], got \[64\]"),
        ({"x": GOOD["x"][:, :32]}, "x: expected its last dimension to be 64, got 32"),
        ({"indices": GOOD["indices"].float()}, "indices: expected int32 or int64, got torch.float32"),
        ({"indices": GOOD["indices"][0]}, r"indices: expected two dimensions \[tokens, top_k\], got \[2\]"),
        ({"routing": GOOD["routing"].long()}, "routing: expected bfloat16, float16 or float32, got torch.int64"),
        ({"routing": GOOD["routing"][:, :1]}, "routing: expected its last dimension to be 2, got 1"),
        ({"gate_up": GOOD["gate_up"][0]}, r"gate_up: expected three dimensions \[experts, N, K\], got \[64, 64\]"),
        ({"down": GOOD["down"][:3]}, "down: expected its number of experts to be 5, got 3"),
        ({"down": GOOD["down"][..., :16]}, "down: expected its columns to be 32, got 16"),
        ({"down": GOOD["down"][:, :32]}, "down: expected its rows to be 64, got 32"),
        ({"down": GOOD["down"].float()}, "down: expected the dtype of x, torch.float16, or integers with scales, got"),
        ({"down_zero": GOOD["down"]}, "down_zero: expected None without scales, got a tensor"),
        ({"down_scale": GOOD["down"]}, "down: expected integers with scales, one of"),
        ({"activation": "relu"}, "activation: expected one of silu, gelu_erf, gelu_tanh, swiglu_oai, got 'relu'"),
        ({"gate_up_bias": GOOD["gate_up"][:, :3, 0]}, r"gate_up_bias: expected shape \[5, 64\], got \[5, 3\]"),
        (
            {"down_bias": GOOD["down"][..., 0].int()},
            "down_bias: expected bfloat16, float16 or float32, got",
        ),
        ({"activation_dtype": "int4"}, "activation_dtype: expected"),
        ({"how": [2, 3]}, r"how: expected what to_args of a FewLaunch, .* returns, got \[2, 3\]"),
        ({"how": [0, 3, 32, 1, 4, 32, 1, 0]}, "how: up_n: expected a power of two from 1 on, got 3"),
        ({"how": [2, 0, 1]}, "how: ctas: expected a number from 1 on, got 0"),
        ({"how": [2, 132, 1]}, "how: activations are bfloat16, got torch.float16. Give a ManyLaunch."),
        ({"how": [1, 8, 32, 32, 4, 2, 32, 32, 4, 2, 0]}, "how: block_m: expected a power of two from 16 on, got 8"),
    ],
)
def test_what_the_operator_refuses(changes: dict[str, Any], message: str) -> None:
    meta = {
        name: each.to("meta") if isinstance(each, torch.Tensor) else each for name, each in (GOOD | changes).items()
    }
    with pytest.raises(KernelArgumentError, match=message):
        torch.ops.etcuda.experts(**meta)


def test_stored_weights_that_do_not_fit() -> None:
    with pytest.raises(WeightFormatError, match=r"experts: gate_up: scale: expected shape \[5, 64, 2\]"):
        torch.ops.etcuda.experts(**STORED | {"gate_up_scale": STORED["gate_up_scale"][..., :1]})
    for given, others, message in (
        (STORED, GOOD, "down: expected quantised weights, as of gate_up, got others"),
        (GOOD, STORED, r"down: expected weights as they are, as of gate_up, got .*zero_point"),
    ):
        down = {name: each for name, each in others.items() if name.startswith("down")}
        with pytest.raises(KernelArgumentError, match=message):
            torch.ops.etcuda.experts(**given | down)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.zeros(2, 8).long()}, "route_experts: logits: expected bfloat16, float16 or float32, got"),
        ({"logits": torch.zeros(8)}, r"logits: expected two dimensions \[tokens, experts\], got \[8\]"),
        ({"scores": "tanh"}, "scores: expected one of softmax, sigmoid, got 'tanh'"),
        ({"group_score": "sum"}, "group_score: expected one of max, pair, got 'sum'"),
        ({"group_score": "pair", "groups": 8, "top_groups": 4}, "group_score: expected 'max' for groups of one"),
        ({"epsilon": -1.0}, "epsilon: expected 0 or more, got -1.0"),
        ({"top_k": 9}, "route_experts: top_k is from 1 to 8, got 9. Call torch.topk."),
        ({"bias": torch.zeros(7)}, r"bias: expected shape \[8\], got \[7\]"),
        ({"bias": torch.zeros(8).long()}, "bias: expected bfloat16, float16 or float32, got torch.int64"),
    ],
)
def test_what_routing_refuses(changes: dict[str, Any], message: str) -> None:
    given = routing_checks.Case().arguments() | {"logits": torch.zeros(2, 8)}
    with pytest.raises(KernelArgumentError, match=message):
        torch.ops.etcuda.route_experts(**given | changes)


def test_which_kernels_are_chosen() -> None:
    one = ExpertsProblem(1, 8, 256, 2048, 512)
    for problem, most in ((one, 1), (ExpertsProblem(4, 2, 8, 96, 96, 16, 0), 8), (one, 32)):
        how = choose(problem, most, 227 << 10, 1)
        assert isinstance(how, FewLaunch)
        assert launch_of(how.to_args()) == how
    exact = ExpertsProblem(1, 8, 256, 2048, 512, activation_dtype="exact")
    many = ExpertsProblem(2048, 8, 256, 2048, 512)
    for problem, most in ((exact, 1), (many, 2048), (many, None), (ExpertsProblem(64, 2, 8, 64, 64, 32, 0), 64)):
        how = choose(problem, most, 227 << 10, 1)
        assert isinstance(how, ManyLaunch)
        assert launch_of(how.to_args()) == how
    assert launch_of(HopperLaunch(132, 1).to_args()) == HopperLaunch(132, 1)

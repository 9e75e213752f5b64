"""The products of few rows in Triton's interpreter and compiled for sm_90, and what the operator refuses."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from etcuda.errors import KernelArgumentError
from etcuda.kernels.common.registry import find
from etcuda.kernels.dense.problem import DenseProblem, refuse
from etcuda.kernels.dense.triton import matvec
from tests.kernels.dense.dense_checks import CASES, Case, expected
from tests.kernels.interpreter import BROKEN, run_checks
from tests.kernels.offline import compile_kernel

_LEAST_SHARED = 99 << 10  # Bytes of shared memory that a CTA may use on every GPU from compute capability 8.0 on.


@pytest.mark.slow
@pytest.mark.skipif(BROKEN, reason="the interpreter of this Triton fails with this NumPy")
def test_kernels_in_the_interpreter() -> None:
    run_checks("dense/interpreted.py")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_reference(case: Case) -> None:
    given = {n: value.cpu() if isinstance(value, torch.Tensor) else value for n, value in case.arguments().items()}
    got = find("etcuda::dense_matvec").compute(given)
    torch.testing.assert_close(got.double(), expected(given), rtol=4e-3, atol=4e-3)
    # On a CPU the operator is its reference.
    assert torch.equal(torch.ops.etcuda.dense_matvec(**given), got)


def ttgir(function: Any, tokens: int, block_n: int, block_k: int, num_warps: int, activation: str) -> str:
    types = {"x": "*bf16", "weight": "*bf16", "bias": "*bf16", "out": "*bf16", "out_features": "i32",
             "num_tokens": "i32"}  # fmt: skip
    constants = {"K": 4096, "HAS_BIAS": False, "ACTIVATION": activation, "TOKENS": tokens, "BLOCK_N": block_n,
                 "BLOCK_K": block_k}  # fmt: skip
    constants |= {"num_tokens": 1} if tokens == 1 else {}
    return compile_kernel(function, types, constants, num_warps, "ttgir", {"out_features"})


@pytest.mark.parametrize(
    ("function", "tokens", "block_n", "block_k", "num_warps", "activation"),
    [
        (matvec.dense_stepped_pdl, 1, 4, 1024, 4, "none"),
        (matvec.dense_stepped_kernel, 8, 4, 1024, 4, "silu"),
        (matvec.dense_resident_pdl, 1, 2, 4096, 4, "none"),
    ],
)
def test_weights_stay_in_the_lanes_that_load_them(
    function: Any, tokens: int, block_n: int, block_k: int, num_warps: int, activation: str
) -> None:
    """In the loop no tile changes its layout, which would send it through shared memory, and loads are whole."""
    code = ttgir(function, tokens, block_n, block_k, num_warps, activation)
    loop = code[code.index("scf.for") :]
    body = loop[: loop.index("scf.yield")]
    tiles = [line for line in body.splitlines() if "ttg.convert_layout" in line and f"x{block_k // 8}x" in line]
    assert not tiles, "\n".join(tiles)
    loads = re.findall(r"tt\.load .*tensor<1x\d+x\d+x!tt\.ptr<bf16>, (#\w+)>", body)
    assert loads
    for layout in set(loads):
        (per_lane,) = re.findall(rf"{layout} = #ttg\.blocked<{{sizePerThread = \[([\d, ]+)\]", code)
        assert per_lane == "1, 1, 8"
    shared = re.findall(r"ttg\.shared = (\d+)", code)
    assert all(int(size) <= _LEAST_SHARED for size in shared)


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (DenseProblem(9, 8, 8), "at most 8 tokens, got 9"),
        (DenseProblem(1, 8, 12), "K is a multiple of 8, got 12"),
        (DenseProblem(1, 8, 0), "K is a multiple of 8, got 0"),
        (DenseProblem(1, 8, 1 << 20), "K is less than 1048576, got 1048576"),
    ],
)
def test_problems_that_are_refused(problem: DenseProblem, reason: str) -> None:
    assert refuse(problem) == reason


X, W = torch.zeros(1, 16, dtype=torch.float16), torch.zeros(4, 16, dtype=torch.float16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": X.float()}, "dense_matvec: x: expected bfloat16 or float16, got torch.float32"),
        ({"x": torch.zeros((), dtype=torch.float16)}, "x: expected at least one dimension"),
        ({"x": X[:, :8]}, "x: expected its last dimension to be 16, got 8"),
        ({"x": X.expand(9, 16)}, "at most 8 tokens, got 9. Call torch.nn.functional.linear."),
        ({"x": X.expand(3, 16), "tokens": 2}, "tokens: expected at least the 3 tokens of x, got 2"),
        ({"weight": W[0]}, r"weight: expected two dimensions \[N, K\], got \[16\]"),
        ({"weight": W.bfloat16()}, "weight: expected the dtype of x, torch.float16, got torch.bfloat16"),
        ({"weight": W.to("meta")}, "weight: expected the device of x, cpu, got meta"),
        ({"weight": W[:3], "activation": "silu"}, r"weight: expected as many rows for the gate .*got \[3, 16\]"),
        ({"bias": W[0, :4].float()}, "bias: expected the dtype of x, torch.float16, got torch.float32"),
        ({"bias": W[0, :3]}, r"bias: expected shape \[4\], got \[3\]"),
        ({"bias": W[0, :4].to("meta")}, "bias: expected the device of x, cpu, got meta"),
        ({"activation": "relu"}, "activation: expected one of none, silu, gelu_erf, gelu_tanh, got 'relu'"),
        ({"tokens": 3}, "tokens: expected a power of two, got 3"),
        ({"block_n": 0}, "block_n: expected a power of two, got 0"),
        ({"block_k": 4}, "block_k: expected at least 8, got 4"),
        ({"num_warps": 64}, "num_warps: expected at most 32, got 64"),
        ({"ctas": -1}, "ctas: expected a positive number, or 0 .*, got -1"),
        ({"ctas": 2, "block_k": 8}, "block_k: expected at least K, 16, for CTAs that keep x, got 8"),
    ],
)
def test_what_the_operator_refuses(changes: dict[str, Any], message: str) -> None:
    good = {"x": X, "weight": W, "bias": None, "activation": "none", "tokens": 1, "ctas": 0, "block_n": 1,
            "block_k": 16, "num_warps": 1, "pdl": 0}  # fmt: skip
    assert torch.ops.etcuda.dense_matvec(**good).shape == (1, 4)
    with pytest.raises(KernelArgumentError, match=message):
        torch.ops.etcuda.dense_matvec(**good | changes)

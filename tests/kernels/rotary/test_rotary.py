"""The rotary kernel in Triton's interpreter, its reference, and what its operator refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from etcuda.errors import KernelArgumentError
from etcuda.kernels.common.registry import find
from etcuda.kernels.rotary.configs import RotaryConfig, choose
from etcuda.kernels.rotary.problem import RotaryProblem, refuse
from tests.kernels.interpreter import BROKEN, run_checks
from tests.kernels.rotary.rotary_checks import CASES, Case, expected


@pytest.mark.slow
@pytest.mark.skipif(BROKEN, reason="the interpreter of this Triton fails with this NumPy")
def test_kernels_in_the_interpreter() -> None:
    run_checks("rotary/interpreted.py")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_reference(case: Case) -> None:
    given = {
        name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in case.arguments().items()
    }
    results = find("etcuda::rotary_cache").compute(given)
    for got, wanted in zip(results, expected(given), strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=2e-3, atol=2e-3)
    assert torch.equal(torch.ops.etcuda.rotary_cache(**given)[1], results[1])


def test_configurations() -> None:
    assert choose(RotaryProblem(1, 32, 8, 128, 128)) == RotaryConfig(1, 1)
    assert choose(RotaryProblem(17, 32, 8, 128, 128)) == RotaryConfig(8, 4)


def test_what_is_not_served() -> None:
    assert refuse(RotaryProblem(1, 4, 4, 1024, 64)) == "head_dim is at most 512, got 1024"
    assert refuse(RotaryProblem(1, 4, 4, 64, 7)) == "rotary_dim is positive and even, got 7"
    assert refuse(RotaryProblem(1, 4, 4, 64, 66)) == "rotary_dim is at most head_dim, 64, got 66"


def zeros(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": zeros(4, 3, 16)}, r"q: expected 4 dimensions, got \[4, 3, 16\]"),
        ({"q": zeros(1, 4, 3, 16, dtype=torch.float64)}, r"q: expected bfloat16, float16 or float32, got torch"),
        ({"v": zeros(1, 2, 3, 16, dtype=torch.float32)}, r"v: expected the dtype of q, torch.float16, got torch"),
        ({"k": zeros(1, 2, 3, 16).to("meta")}, r"k: expected the device of q, cpu, got meta"),
        ({"k": zeros(2, 2, 3, 16)}, r"k: expected its batch size to be 1, got 2"),
        ({"k": zeros(1, 2, 3, 8)}, r"k: expected its head_dim to be 16, got 8"),
        ({"v": zeros(1, 4, 3, 16)}, r"v: expected its number of heads to be 2, got 4"),
        ({"v": zeros(1, 2, 4, 16)}, r"v: expected its number of tokens to be 3, got 4"),
        ({"k_cache": zeros(1, 9, 2, 16).transpose(1, 2)}, r"k_cache: expected a contiguous tensor, got strides"),
        ({"v_cache": zeros(1, 2, 8, 16)}, r"v_cache: expected its number of places to be 9, got 8"),
        ({"rotary_dim": 18}, r"rotary_dim is at most head_dim, 16, got 18\. Rotate the heads in PyTorch"),
        ({"cos": zeros(3, 8, dtype=torch.int32)}, r"cos: expected bfloat16, float16 or float32, got torch.int32"),
        ({"sin": zeros(8)}, r"sin: expected \[L, columns\] or \[batch, L, columns\], got \[8\]"),
        ({"sin": zeros(3, 5)}, r"sin: expected 16 or 8 columns, got \[3, 5\]"),
        ({"sin": zeros(3, 16)}, r"sin: expected as many columns as cos, 8, got 16"),
        ({"cos": zeros(4, 8)}, r"cos: expected its length to be 3, got 4"),
        ({"cos": zeros(2, 3, 8)}, r"cos: expected its batch size to be 1, got 2"),
        ({"positions": zeros(3)}, r"positions: expected int32 or int64, got torch.float16"),
        ({"positions": zeros(1, 3, dtype=torch.int64)}, r"positions: expected one dimension \[L\], got \[1, 3\]"),
        ({"positions": zeros(2, dtype=torch.int64)}, r"positions: expected its length to be 3, got 2"),
        ({"consecutive": True}, r"positions: expected its length to be 1, got 3"),
        ({"eps": -1.0}, r"eps: expected a positive finite number, or 0 for no norm, got -1.0"),
        ({"q_weight": zeros(16)}, r"q_weight: expected None without a norm, got a weight and eps = 0"),
        ({"eps": 1e-5, "k_weight": zeros(8)}, r"k_weight: expected shape \[16\], got \[8\]"),
        ({"eps": 1e-5, "k_weight": zeros(16).long()}, r"k_weight: expected bfloat16, float16 or float32, got torch"),
        ({"heads": 3}, r"heads: expected a power of two, got 3"),
        ({"num_warps": 3}, r"num_warps: expected 1, 2, 4, 8, 16 or 32, got 3"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)  # fmt: skip
def test_arguments_that_are_refused(changes: dict[str, Any], message: str) -> None:
    given = {
        name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in Case().arguments().items()
    }
    with pytest.raises(KernelArgumentError, match=f"rotary_cache: {message}"):
        torch.ops.etcuda.rotary_cache(**given | changes)

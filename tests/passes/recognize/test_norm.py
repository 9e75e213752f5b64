"""Norms are recognised by their formula, down to the dtype of every step."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from etcuda.passes.recognize.norm import recognize_norm


class Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *x: Tensor) -> Tensor:
        return self.function(*x)


def _recognized(function: Callable[..., Tensor], *x: Tensor) -> Any:
    """What the norm that a function computes is recognised as."""
    program = torch.export.export(Function(function), x).run_decompositions()
    (y,) = program.graph.output_node().args[0]  # type: ignore[misc]
    return recognize_norm(y)  # type: ignore[arg-type]


def _normed(x: Tensor, *, keepdim: bool = True, dtype: Any = None, eps: float = 1e-5) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=keepdim, dtype=dtype) + eps)


@pytest.mark.parametrize("dtype", [None, torch.float32], ids=str)
def test_the_mean_of_a_norm(dtype: Any) -> None:
    x = torch.randn(64, 64)
    found = _recognized(lambda x: _normed(x, dtype=dtype), x)
    assert (found.eps, found.weight) == (1e-5, None)
    # Without the last dimension it scales columns.
    assert re.search(
        "drops the last dimension, expected that it is kept", _recognized(lambda x: _normed(x, keepdim=False), x)
    )
    for other in (torch.bfloat16, torch.float16):
        reason = _recognized(lambda x, other=other: _normed(x, dtype=other), x)
        assert re.search(rf"is computed in {other}, expected torch\.float32", reason)
    assert re.search("expected a positive finite number", _recognized(lambda x: _normed(x, eps=float("inf")), x))


def test_a_root_that_is_a_power() -> None:
    def normed(x: Tensor, power: float | Tensor) -> Tensor:
        return x * torch.pow(x.pow(2).mean(-1, keepdim=True) + 1e-6, power)

    x = torch.randn(4, 64)
    assert _recognized(lambda x: normed(x, -0.5), x).eps == 1e-6
    assert _recognized(lambda x: normed(x, torch.full((), -0.5)), x).eps == 1e-6
    for other in (0.5, -1.0, -0.25):
        assert "reciprocal root" in _recognized(lambda x, other=other: normed(x, other), x)
    assert "reciprocal root" in _recognized(normed, x, torch.full((4, 1), -0.5))


def test_squares_that_are_rounded_are_no_norm() -> None:
    reason = _recognized(lambda x: _normed(x, dtype=torch.float32).to(x.dtype), torch.randn(4, 64).bfloat16())
    assert re.search(r"computed in torch\.bfloat16, expected torch\.float32|no norm", reason)


def test_a_weight_of_eight_bits_stays_cast() -> None:
    # ExecuTorch refuses that cast so far, hence no whole program.
    found = _recognized(lambda x, w: _normed(x) * w.float(), torch.randn(4, 64), torch.ones(64).to(torch.float8_e4m3fn))
    assert found.weight.meta["val"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool], ids=str)
def test_a_weight_of_no_floating_dtype(dtype: torch.dtype) -> None:
    reason = _recognized(lambda x, w: _normed(x) * w, torch.randn(4, 64), torch.ones(64, dtype=dtype))
    assert re.search(rf"the weight x_1, an input is {dtype}, expected one of torch\.bfloat16, .*torch\.float32", reason)

"""What is no norm and no gate stays by itself, with the reason; so does what the operators do not take."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.passes.linear.activation_programs import (
    FUSED,
    Block,
    Llama,
    arguments,
    compare,
    inputs,
)
from tests.passes.linear.quantized_programs import (
    HOST,
    calls,
    make,
    quantized,
)

pytestmark = pytest.mark.usefixtures("nothing_measured")


class Refused(nn.Module):
    """A product of what a function makes of its input."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.q = nn.Linear(64, 64, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        out: Tensor = self.q(self.function(x, y))
        return out


def _mean_of(dim: int, eps: float, power: int = 2, dtype: Any = torch.float32) -> Any:
    def norm(x: Tensor, _: Tensor) -> Tensor:
        wide = x.to(dtype)
        return (wide * torch.rsqrt(wide.pow(power).mean(dim, keepdim=True) + eps)).to(x.dtype)

    return norm


def _of_other(x: Tensor, y: Tensor) -> Tensor:
    return (x.float() * torch.rsqrt(y.float().pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


REFUSED = {
    "input": (lambda x, y: x, "x is an input"),
    "relu": (lambda x, y: F.relu(x), r"no norm, for .*relu.* no gate, for .*relu.* is no product of two tensors"),
    "dimension": (_mean_of(0, 1e-5), "expected the mean over the last dimension"),
    "power": (_mean_of(-1, 1e-5, 4), "expected the square of"),
    "negative eps": (_mean_of(-1, -1e-5), "is added to the mean, expected a positive finite number"),
    "dtype": (
        _mean_of(-1, 1e-5, dtype=torch.bfloat16),
        r"computed in torch\.bfloat16, expected torch\.float32|no norm",
    ),
    "other input": (_of_other, "expected the square of"),
    "broadcast gate": (lambda x, y: F.silu(x) * y[:1], r"gate is torch\.bfloat16 \[4, 64\] and up .* \[1, 64\]"),
    "sigmoid": (lambda x, y: torch.sigmoid(x) * y, "neither factor is silu or gelu of a gate"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_recognised_stays_and_the_log_says_why(name: str, caplog: pytest.LogCaptureFixture) -> None:
    function, reason = REFUSED[name]
    caplog.set_level("INFO", "etcuda")
    program = compare(quantized(make(Refused, function=function)), *inputs(torch.bfloat16))
    assert not calls(program, *FUSED)
    assert len(calls(program, "quantize_activation")) == 1
    assert re.search(rf"stays by itself: .*{reason}", caplog.text), caplog.text


class Weighed(nn.Module):
    """An fp32 norm whose weight is stored in another dtype."""

    def __init__(self, weight: Tensor, weigh: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Buffer(weight)
        self.weigh = weigh
        self.q = nn.Linear(64, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.q(self.weigh(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5), self.weight))
        return out


@pytest.mark.parametrize(
    ("dtype", "weigh", "offset"),
    [
        (torch.float64, lambda n, w: n * w.float(), 0.0),
        (torch.float64, lambda n, w: n * (1.0 + w.float()), 1.0),
        (torch.float64, lambda n, w: n * (1.0 + w).float(), 0.0),
        (torch.int32, lambda n, w: n * w, 0.0),
        (torch.int32, lambda n, w: n * (1.0 + w), None),
    ],
    ids=["float64", "float64 plus one", "one plus float64", "int", "one plus int"],
)
def test_a_weight_that_the_operator_does_not_take(dtype: Any, weigh: Any, offset: float | None) -> None:
    torch.manual_seed(0)
    model = quantized(Weighed(torch.arange(1, 65).to(dtype), weigh))
    program = compare(model, inputs(torch.float32)[0])
    (found,) = (arguments(node) for node in calls(program, "rms_norm_quantize"))
    # The cast stays in front of the kernel, which therefore waits for it.
    assert found["weight"].meta["val"].dtype == torch.float32
    assert found["pdl"] == 0
    assert offset is None or found["weight_offset"] == offset


def test_the_host_quantizes_nothing() -> None:
    program = compare(quantized(make(Block, norm=Llama)), *inputs(torch.bfloat16), config=HOST)
    assert not calls(program)


@pytest.mark.parametrize("gate_first", [True, False])
def test_halves_of_one_tensor(gate_first: bool) -> None:
    def gated(x: Tensor, y: Tensor) -> Tensor:
        both = torch.cat([x, y], -1) + 1
        first, second = both[:, :64], both[:, 64:]
        return F.silu(first) * second if gate_first else F.silu(second) * first

    program = compare(quantized(make(Refused, function=gated)), *inputs(torch.bfloat16))
    (found,) = (arguments(node) for node in calls(program, "gate_quantize"))
    # Only gate and then up lie as the kernel takes them together.
    assert (found["up"] is None) == gate_first

"""Norms and gated activations are joined with the rounding behind them, and the program computes the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from etcuda.kernels.linear.choose import table
from etcuda.passes.recognize.activation import recognize_norm
from tests.passes.linear.activation_programs import (
    FUSED,
    NORMS,
    Added,
    Bare,
    Block,
    Llama,
    Shapes,
    arguments,
    compare,
    inputs,
    run,
)
from tests.passes.linear.quantized_programs import (
    FUSION,
    HOST,
    calls,
    close,
    export,
    lowered,
    make,
    modules,
    quantized,
)

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables in the repository change."""
    monkeypatch.setattr(table, "load", lambda bits, arch: None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm[0].__name__)
def test_norms_of_libraries(norm: Any, dtype: torch.dtype) -> None:
    kind, eps, offset, cast_first = norm
    model = quantized(make(Block, dtype, norm=kind))
    program = compare(model, *inputs(dtype))
    assert not calls(program, "quantize_activation")
    first, second = (arguments(node) for node in calls(program, "rms_norm_quantize"))
    for found in (first, second):
        assert found["eps"] == pytest.approx(eps, rel=1e-6)
        assert (found["weight"] is None) == (kind is Bare)
        if kind is not Added:
            assert found["weight_offset"] == offset
        assert found["cast_first"] == (cast_first and dtype != torch.float32)
        # Only what is constant may be read while the kernel in front runs.
        assert found["pdl"] == (kind is not Added or dtype == torch.float32)
        assert (found["keep_h"], found["keep_y"]) == (False, False)
    # Where the weight is computed behind the sum, the sum stays.
    alone = kind is Added and dtype != torch.float32
    assert (first["residual"] is None, second["residual"] is None) == (True, alone)
    (gate,) = (arguments(node) for node in calls(program, "gate_quantize"))
    assert (gate["up"], gate["activation"], gate["keep_y"], gate["pdl"]) == (None, "silu", False, 1)


@pytest.mark.parametrize(
    ("act", "name"),
    [(F.silu, "silu"), (F.gelu, "gelu_erf"), (lambda x: F.gelu(x, approximate="tanh"), "gelu_tanh")],
    ids=["silu", "gelu_erf", "gelu_tanh"],
)
@pytest.mark.parametrize("fused", [True, False])
def test_gates(act: Any, name: str, fused: bool) -> None:
    model = quantized(make(Block, norm=Llama, act=act))
    x = inputs(torch.bfloat16)
    program = lowered(export(model, *x), without=() if fused else FUSION)
    (gate,) = (arguments(node) for node in calls(program, "gate_quantize"))
    assert (gate["activation"], gate["up"] is None) == (name, fused)
    assert close(run(program, model, *x), model(*x))


@pytest.mark.parametrize(("read", "kept"), [("", (0, 0, 0)), ("h", (1, 0, 0)), ("all", (1, 1, 1))])
def test_what_others_read_is_kept(read: str, kept: tuple[int, int, int]) -> None:
    program = compare(quantized(make(Block, norm=Llama, read=read)), *inputs(torch.bfloat16))
    first, second = (arguments(node) for node in calls(program, "rms_norm_quantize"))
    (gate,) = (arguments(node) for node in calls(program, "gate_quantize"))
    assert (second["keep_h"], second["keep_y"], gate["keep_y"]) == kept
    assert (first["keep_h"], first["keep_y"]) == (0, read == "all")
    assert not calls(program, "quantize_activation")
    targets = {str(node.target) for node in program.graph.nodes}
    assert not targets & {"aten.rsqrt.default", "aten.silu.default", "aten.mean.dim"}


def test_a_sum_that_is_read_before_its_norm() -> None:
    program = compare(quantized(make(Block, norm=Added, read="h")), *inputs(torch.bfloat16))
    # The weight is computed behind the sum, which therefore stays.
    assert all(arguments(node)["residual"] is None for node in calls(program, "rms_norm_quantize"))
    program = compare(quantized(make(Block, norm=Llama, read="other")), *inputs(torch.bfloat16))
    found = arguments(calls(program, "rms_norm_quantize")[-1])
    assert (found["residual"] is not None, found["keep_h"]) == (True, True)


@pytest.mark.parametrize("shape", [(2, 3, 64), (1, 1, 4, 64), (8, 64)])
def test_leading_sizes(shape: tuple[int, ...]) -> None:
    program = compare(quantized(make(Shapes)), torch.randn(shape).to(torch.bfloat16))
    (found,) = (arguments(node) for node in calls(program, "rms_norm_quantize"))
    assert not found["keep_y"]


def test_a_dynamic_size_that_one_kernel_serves() -> None:
    model = quantized(make(Shapes))
    x = torch.randn(1, 5, 64).to(torch.bfloat16)
    program = lowered(export(model, x, dynamic=({1: Dim("few", min=3, max=8)},)))
    (found,) = (arguments(node) for node in calls(program, "rms_norm_quantize"))
    assert not found["keep_y"]
    for rows in (3, 8):
        x = torch.randn(1, rows, 64).to(torch.bfloat16)
        assert close(run(program, model, x), model(x))


class GateShapes(nn.Module):
    """A gated activation whose sizes its product reads; gate and up are one product, or up is an input."""

    def __init__(self, joined: bool) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        self.down = nn.Linear(64, 32, bias=False)
        self.joined = joined

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.gate(x)) * (self.up(x) if self.joined else x)
        return self.down(y)


@pytest.mark.parametrize("joined", [True, False])
def test_a_dynamic_size_of_a_gate(joined: bool) -> None:
    model = quantized(make(GateShapes, joined=joined))
    x = torch.randn(1, 5, 64).to(torch.bfloat16)
    program = lowered(export(model, x, dynamic=({1: Dim("few", min=3, max=8)},)))
    (found,) = (arguments(node) for node in calls(program, "gate_quantize"))
    assert (found["up"] is None, found["keep_y"]) == (joined, False)
    for rows in (3, 8):
        x = torch.randn(1, rows, 64).to(torch.bfloat16)
        assert close(run(program, model, x), model(x))


def test_rounding_in_a_branch_and_its_norm_outside(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "etcuda")
    model = quantized(make(Shapes))
    x = torch.randn(1, 5, 64).to(torch.bfloat16)
    program = lowered(export(model, x, dynamic=({1: Dim("rows", min=1, max=40)},)))
    assert not calls(program, *FUSED)
    assert len(calls(program, "quantize_activation")) == 1
    assert re.search(r"quantize_activation_default stays by itself: .* is computed outside the branch", caplog.text)
    for rows in (1, 8, 9):
        x = torch.randn(1, rows, 64).to(torch.bfloat16)
        assert close(run(program, model, x), model(x))


class Branch(nn.Module):
    """A norm and a product, and a gate and a product, in a branch that a flag chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = make(Llama, dim=64)
        for name, part in quantized(make(Shapes)).q.weight.components.items():  # type: ignore[union-attr]
            self.register_buffer(name, part)

    def linear(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.etcuda.int4_linear(
            x, self.qdata, self.scale, self.zero, None, None, None, 32, "int8"
        )  # fmt: skip
        return out

    def forward(self, flag: Tensor, x: Tensor, more: Tensor) -> Tensor:
        def block(x: Tensor, more: Tensor) -> Tensor:
            h = x + more
            y = self.linear(self.norm(h))
            return h + self.linear(F.gelu(y) * more)

        out: Tensor = torch.cond(flag.any(), block, lambda a, b: a - b, (x, more))
        return out


def test_a_chain_that_lies_in_a_branch() -> None:
    model = Branch().eval()
    program = compare(model, torch.ones(1, dtype=torch.bool), *inputs(torch.bfloat16))
    assert len(modules(program)) == 3
    (norm,) = (arguments(node) for node in calls(program, "rms_norm_quantize"))
    assert (norm["residual"] is not None, norm["keep_h"], norm["keep_y"]) == (True, True, False)
    # A branch does not know whether what it is handed is constant.
    assert norm["pdl"] == 0
    (gate,) = (arguments(node) for node in calls(program, "gate_quantize"))
    assert (gate["up"] is not None, gate["activation"]) == (True, "gelu_erf")
    assert not calls(program, "quantize_activation")


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


def test_the_host_has_no_rounding_of_its_own() -> None:
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

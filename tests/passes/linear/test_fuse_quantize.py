"""Norms and gated activations are fused with their quantization, and the program computes the same."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from tests.exhaustive import diagonal
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
    calls,
    close,
    export,
    lowered,
    make,
    modules,
    quantized,
)

pytestmark = pytest.mark.usefixtures("nothing_measured")

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize(
    ("norm", "dtype"),
    diagonal(NORMS, DTYPES),
    ids=lambda value: value[0].__name__ if isinstance(value, tuple) else str(value),
)
def test_norms_of_libraries(norm: Any, dtype: torch.dtype) -> None:
    norm_type, eps, offset, cast_first = norm
    model = quantized(make(Block, dtype, norm=norm_type))
    program = compare(model, *inputs(dtype))
    assert not calls(program, "quantize_activation")
    first, second = (arguments(node) for node in calls(program, "rms_norm_quantize"))
    for found in (first, second):
        assert found["eps"] == pytest.approx(eps, rel=1e-6)
        assert (found["weight"] is None) == (norm_type is Bare)
        if norm_type is not Added:
            assert found["weight_offset"] == offset
        assert found["cast_first"] == (cast_first and dtype != torch.float32)
        # Only what is constant may be read while the kernel in front runs.
        assert found["pdl"] == (norm_type is not Added or dtype == torch.float32)
        assert (found["keep_h"], found["keep_y"]) == (False, False)
    # Where the weight is computed behind the sum, the sum stays.
    alone = norm_type is Added and dtype != torch.float32
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


def test_quantization_in_a_branch_and_its_norm_outside(caplog: pytest.LogCaptureFixture) -> None:
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

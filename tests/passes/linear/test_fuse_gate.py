"""A gated activation of a product of few tokens is computed at the product's end."""

from __future__ import annotations

import functools
import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etcuda import Int4CoalescedConfig, Int8CoalescedConfig
from etcuda.kernels.activations.choose import table as activation_table
from tests.passes.linear.quantized_programs import HOST, MLP, calls, export, lowered, make, quantized, runnable

PASS = "fuse_gate"
X = torch.randn(1, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)


@pytest.fixture(autouse=True)
def gates_are_not_quantized(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a table of what quantizing costs, products of one token quantize by themselves."""
    monkeypatch.setattr(activation_table, "load", lambda arch: None)


class Gelu(MLP):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(F.gelu(self.gate(x), approximate="tanh") * self.up(x))
        return result


class ReadElsewhere(MLP):
    def forward(self, x: Tensor) -> Any:
        gate, up = self.gate(x), self.up(x)
        return self.down(F.silu(gate) * up), up


@pytest.mark.parametrize("config", [Int4CoalescedConfig(), Int8CoalescedConfig()], ids=["int4", "int8"])
@pytest.mark.parametrize(("kind", "activation"), [(MLP, "silu"), (Gelu, "gelu_tanh")])
@pytest.mark.parametrize("shape", [(1, 64), (1, 1, 64), (64,)])
def test_the_product_applies_the_gate(
    config: Any, kind: type[nn.Module], activation: str, shape: tuple[int, ...]
) -> None:
    model, x = quantized(make(kind), config), X.reshape(shape)
    program = export(model, x)
    fused, plain = lowered(program), lowered(program, without=(PASS,))
    assert [node.args[-1] for node in calls(fused)] == [activation, *[calls(plain)[-1].args[-1]]]
    assert len(calls(fused)) == len(calls(plain)) == 2
    targets = [str(node.target) for node in fused.graph.nodes]
    assert not any("silu" in each or "gelu" in each or "aten.mul" in each for each in targets)
    assert torch.equal(runnable(fused)(x), runnable(plain)(x))


def test_what_is_read_elsewhere_stays_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    program = lowered(export(quantized(make(ReadElsewhere)), X))
    assert not any("silu" in node.args for node in calls(program))
    assert "stays by itself: a half of int4_matvec" in caplog.text


def test_many_tokens_and_the_host_keep_their_gates() -> None:
    for x, options in ((X.repeat(32, 1), {}), (X, {"config": HOST})):
        program = lowered(export(quantized(make(MLP)), x), **options)
        assert not any("silu" in node.args for node in calls(program, "int4_matvec", "int4_matvec_quantized"))


def test_gates_that_a_kernel_quantizes_stay_with_it() -> None:
    # Of more tokens than one the product behind takes activations that were quantized before.
    program = lowered(export(quantized(make(functools.partial(MLP, dim=64, hidden=96))), X.repeat(4, 1)))
    assert len(calls(program, "gate_quantize")) == 1
    assert all(node.args[-1] != "silu" for node in calls(program, "int4_matvec_quantized"))

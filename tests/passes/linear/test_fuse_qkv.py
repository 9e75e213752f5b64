"""Projections of one input become one product with the same results, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from etcuda import Int4CoalescedConfig, Int8CoalescedConfig
from etcuda.options import BackendConfig
from tests.passes.linear.quantized_programs import (
    FUSION,
    GPU,
    HOST,
    KERNELS,
    calls,
    close,
    constants,
    export,
    lowered,
    make,
    quantized,
    runnable,
)


class Attention(nn.Module):
    """Grouped queries: 4 heads of 16, 2 of keys and values."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.q = nn.Linear(64, 64, bias=bias)
        self.k = nn.Linear(64, 32, bias=bias)
        self.v = nn.Linear(64, 32, bias=bias)
        self.o = nn.Linear(64, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (layer(x).reshape(batch, length, -1, 16).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out: Tensor = self.o(y.transpose(1, 2).reshape(batch, length, -1))
        return out


def _only_linears(program: Any) -> list[tuple[int, ...]]:
    return [tuple(node.meta["val"].shape)[-1:] for node in calls(program, *KERNELS)]


@pytest.mark.parametrize(("target", "bias"), [(GPU, True), (HOST, False)], ids=["sm_90", "host"])
def test_results_are_equal_bit_for_bit(target: BackendConfig, bias: bool) -> None:
    # The formula of attention in the place of its kernels, which do not run here.
    model = quantized(make(Attention, torch.float32, bias=bias))
    x = torch.randn(2, 3, 64)
    program = export(model, x)
    fused, apart = lowered(program, target), lowered(program, target, without=FUSION)
    if not target.is_host:
        assert _only_linears(fused) == [(128,), (64,)]
        assert len(calls(fused, "quantize_activation")) == 2
        assert len(_only_linears(apart)) == 4
    assert torch.equal(runnable(fused)(x), runnable(apart)(x))
    assert len(constants(fused)) == len(constants(apart)) - 2 * (3 + bias)


def test_a_weight_of_another_format_stays_apart(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "etcuda")
    model = make(Attention, torch.float32)
    for name in ("q", "k", "o"):
        quantized(getattr(model, name), Int4CoalescedConfig())
    quantized(model.v, Int8CoalescedConfig())
    x = torch.randn(2, 3, 64)
    program = export(model, x)
    fused, apart = lowered(program), lowered(program, without=FUSION)
    assert _only_linears(fused) == [(96,), (32,), (64,)]
    assert "stays apart from etcuda_int4_linear_default: formats differ" in caplog.text
    assert torch.equal(runnable(fused)(x), runnable(apart)(x))


def test_a_dynamic_number_of_rows() -> None:
    model = quantized(make(Attention, torch.float32))
    x = torch.randn(1, 12, 64)
    program = lowered(export(model, x, dynamic=({1: Dim("length", min=2, max=90)},)))
    run = runnable(program)
    for length in (2, 8, 9, 90):
        x = torch.randn(1, length, 64)
        # Tensor cores take activations in fp16, and what comes out is rounded to int8 again: some go the other way.
        least = torch.bfloat16 if length > 8 else torch.float32
        assert close(run(x), model(x), least), length


class Chain(nn.Module):
    """Products that read a product directly, with what reads them next to them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64, bias=False)
        self.second = nn.Linear(64, 64, bias=False)
        self.third = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        gate = nn.functional.silu(self.first(x))
        x = self.second(x)
        return gate * sum(layer(x) for layer in self.third)


@pytest.mark.parametrize("target", [GPU, HOST], ids=["sm_90", "host"])
def test_products_of_products(target: BackendConfig) -> None:
    model = quantized(make(Chain, torch.float32))
    x = torch.randn(2, 3, 64)
    program = export(model, x)
    fused, apart = lowered(program, target), lowered(program, target, without=FUSION)
    if not target.is_host:
        assert _only_linears(fused) == [(128,), (192,)]
    assert torch.equal(runnable(fused)(x), runnable(apart)(x))


class Shared(nn.Module):
    """The head has the embedding's weight and reads what another layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(96, 64)
        self.head = nn.Linear(64, 96, bias=False)
        self.head.weight = self.table.weight
        self.other = nn.Linear(64, 96, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.table(x)
        return self.head(hidden), self.other(hidden)


def test_a_weight_that_is_used_elsewhere_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "etcuda")
    program = lowered(export(quantized(make(Shared)), torch.randint(0, 96, (1, 3))))
    assert len(calls(program, *KERNELS)) == 2
    assert "is used elsewhere too and would be stored twice" in caplog.text

"""Activations that several products read are quantized once, and reordered once for each order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from etcuda import Int4CoalescedConfig, Int8CoalescedConfig
from etcuda.kernels.linear.choose.configs import MatmulConfig
from etcuda.kernels.linear.choose.select import Choice
from tests.passes.linear.quantized_programs import (
    FUSION,
    KERNELS,
    MLP,
    calls,
    close,
    export,
    lowered,
    make,
    quantized,
    runnable,
)

pytestmark = pytest.mark.usefixtures("nothing_measured")


def test_activations_that_several_products_read_are_quantized_once() -> None:
    model = quantized(make(MLP))
    x = torch.randn(4, 64).to(torch.bfloat16)
    program = lowered(export(model, x), without=(*FUSION, "fuse_quantize"))
    assert len(calls(program, "int4_matvec_quantized")) == 3
    assert len(calls(program, "quantize_activation")) == 2
    assert close(runnable(program)(x), model(x))


class Projections(nn.Module):
    """Query, key and value, and one product whose weight has a format of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, n, bias=False) for n in (8, 4096, 200))
        self.other = nn.Linear(64, 48, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return *(layer(x) for layer in self.layers), self.other(x)


@pytest.mark.parametrize(
    ("other", "reorderings"),
    [
        (Int4CoalescedConfig(group_size=64), [(4, "int8")]),
        (Int8CoalescedConfig(), [(4, "int8"), (8, "int8")]),
        (Int4CoalescedConfig(activation_dtype="exact"), [(4, "exact"), (4, "int8")]),
    ],
    ids=["format", "bits", "activation"],
)
@pytest.mark.parametrize("fused", [False, True])
def test_activations_that_several_products_read_are_reordered_once(
    fused: bool, other: Any, reorderings: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from etcuda.passes.linear import choose as choose_linear

    # Tiles of different heights, by the number of rows of the weight.
    def choose(problem: Any, *_: Any, **__: Any) -> Any:
        return Choice("matmul", MatmulConfig(64, 16 if problem.n == 8 else 64, 4, 4, 2, 1), "this test")

    monkeypatch.setattr(choose_linear, "choose_matmul", choose)
    model = make(Projections)
    quantized(model.layers)
    quantized(model.other, other)
    x = torch.randn(2, 50, 64).to(torch.bfloat16)
    program = lowered(export(model, x), without=() if fused else FUSION)
    found = calls(program, "reorder_activation")
    # Rows for the highest tiles; as many as M, 100, rounded up.
    assert sorted(node.args[1:3] for node in found) == reorderings
    assert {node.args[3] for node in found} == {64}
    assert {tuple(node.meta["val"][0].shape) for node in found} == {(128, 128)}
    products = calls(program, *KERNELS)
    assert len(products) == 4
    assert {node.args[13] for node in products} == {16, 64}
    assert {node.args[0].args[0] for node in products} == set(found)
    for got, expected in zip(runnable(program)(x), model(x), strict=True):
        assert close(got, expected)

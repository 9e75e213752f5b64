"""Gate and up of a gated block become one product with the same results, bit for bit."""

from __future__ import annotations

import gc
import re
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from etcuda import Int4CoalescedConfig, Int8CoalescedConfig
from etcuda.options import BackendConfig
from etcuda.passes.graph import program_constants
from etcuda.passes.manager import run_passes
from tests.exhaustive import pairs
from tests.passes.linear.quantized_programs import (
    FUSION,
    GPU,
    HOST,
    MLP,
    calls,
    constants,
    delegated,
    export,
    lowered,
    make,
    passes_without,
    quantized,
    runnable,
)

KERNELS = tuple(f"int{bits}_{kind}" for bits in (4, 8) for kind in ("matvec", "matvec_quantized", "matmul_reordered"))
CONFIGS = [
    Int4CoalescedConfig(),
    Int4CoalescedConfig(offset="symmetric", activation_dtype="exact"),
    Int4CoalescedConfig(offset="minimum", scale_storage="codes"),
    Int8CoalescedConfig(group_size=None),
]
X = torch.randn(3, 256, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)


@pytest.mark.parametrize(
    ("config", "bias", "target"),
    pairs([(each, bool(i % 2)) for i, each in enumerate(CONFIGS)], [GPU, HOST]),
    ids=lambda value: ("host" if value.is_host else "sm_90") if isinstance(value, BackendConfig) else str(value),
)
def test_results_are_equal_bit_for_bit(config: Any, target: BackendConfig, bias: bool) -> None:
    model = quantized(make(MLP, dim=256, hidden=256, bias=bias), config)
    program = export(model, X)
    fused, apart = lowered(program, target), lowered(program, target, without=FUSION)
    if not target.is_host:
        # Tensor cores compute the parts one by one.
        assert [len(calls(each, *KERNELS)) for each in (fused, apart)] == [2 + (config.activation_dtype == "exact"), 3]
    assert torch.equal(runnable(fused)(X), runnable(apart)(X))
    assert sorted(_bytes(fused)) != sorted(_bytes(apart))
    assert sum(_bytes(fused)) == sum(_bytes(apart)), "the weights are there once"


def _bytes(program: Any) -> list[int]:
    return [tensor.untyped_storage().nbytes() for tensor in constants(program).values()]


def test_the_program_holds_the_joined_weights_alone_and_methods_share_them() -> None:
    # Of programs that other tests keep.
    kept = list(program_constants._MADE.keys())
    model = quantized(make(MLP, dim=256, hidden=256))
    first, second = (delegated(export(model, x)) for x in (X, X[:1].clone()))
    before = set(constants(first))
    for program in (first, second):
        run_passes(program, GPU, passes_without("route_linear"))
    joined = {name: tensor for name, tensor in constants(first).items() if name not in before}
    assert [tuple(tensor.shape) for tensor in joined.values()] == [(512, 128), (512, 8), (512, 8)]
    assert set(first.state_dict) == set(constants(first))
    assert all(constants(second)[name] is tensor for name, tensor in joined.items())
    alive = [weakref.ref(tensor) for tensor in joined.values()]
    del first, second, joined, program
    gc.collect()
    assert not any(reference() is not None for reference in alive)
    assert not [key for key in program_constants._MADE if key not in kept]


def _mixed() -> nn.Module:
    model = make(MLP)
    quantized(model.gate, Int4CoalescedConfig())
    quantized(model.up, Int8CoalescedConfig())
    return quantized(model.down) and model  # type: ignore[return-value]


def _one_bias() -> nn.Module:
    model = make(MLP)
    model.up.bias = nn.Parameter(torch.randn(96).to(torch.bfloat16), requires_grad=False)
    return quantized(model)


def _activations() -> nn.Module:
    model = quantized(make(MLP))
    model.up.weight = nn.Parameter(model.up.weight.with_activation_dtype("exact"), requires_grad=False)
    return model


def _tied() -> nn.Module:
    model = quantized(make(MLP))
    model.up.weight = model.gate.weight
    return model


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (_mixed, r"formats differ, Int4Format\(group_size=32, .* and Int8Format\(group_size=32"),
        (_one_bias, "one has a bias and the other has not"),
        (_activations, "activations differ, 'int8' and 'exact'"),
        (_tied, "is used elsewhere too and would be stored twice"),
    ],
)
def test_what_differs_stays_apart_and_the_log_says_why(
    build: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "etcuda")
    model = build()
    x = X[:, :64].contiguous()
    program = lowered(export(model, x))
    assert len(calls(program, *KERNELS)) == 3
    assert any(record.message and "stay apart" in record.message for record in caplog.records)
    assert re.search(reason, caplog.text)
    apart = lowered(export(model, x), without=FUSION)
    assert torch.equal(runnable(program)(x), runnable(apart)(x))


class NotGated(nn.Module):
    """The product of two layers that read different inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(64, 96)
        self.b = nn.Linear(64, 96)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * self.b(x + 1)


def test_products_of_different_inputs_stay_apart() -> None:
    program = lowered(export(quantized(make(NotGated)), X[:, :64].contiguous()))
    assert len(calls(program, *KERNELS)) == 2

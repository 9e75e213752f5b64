"""Quantised products are routed by their numbers of rows, and the routed program computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from etcuda import Int4CoalescedConfig, Int8CoalescedConfig
from etcuda.options import BackendConfig
from tests.exhaustive import diagonal
from tests.passes.linear.quantized_programs import (
    GPU,
    HOST,
    KERNELS,
    Linear,
    calls,
    close,
    export,
    lowered,
    make,
    quantized,
    runnable,
)

pytestmark = pytest.mark.usefixtures("nothing_measured")


CONFIGS = [
    Int4CoalescedConfig(),
    Int4CoalescedConfig(offset="symmetric", group_size=64),
    Int4CoalescedConfig(offset="minimum", scale_storage="codes"),
    Int4CoalescedConfig(activation_dtype="exact"),
    Int8CoalescedConfig(),
    Int8CoalescedConfig(group_size=None, activation_dtype="exact"),
]


@pytest.mark.parametrize(("rows", "config"), diagonal([0, 1, 8, 9, 100], CONFIGS), ids=str)
def test_a_fixed_number_of_rows_goes_to_one_kernel(config: Any, rows: int) -> None:
    model = quantized(make(Linear, k=256), config)
    x = torch.randn(rows, 256).to(torch.bfloat16)
    program = lowered(export(model, x))
    (call,) = calls(program, *KERNELS)
    few = rows <= 8 and config.activation_dtype == "int8"
    assert ("matvec" in str(call.target)) == few
    assert close(runnable(program)(x), model(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_leading_sizes_are_kept(dtype: torch.dtype) -> None:
    model = quantized(make(Linear, dtype))
    x = torch.randn(2, 3, 64).to(dtype)
    program = lowered(export(model, x))
    assert close(runnable(program)(x), model(x))


class EverySecondRow(nn.Module):
    def __init__(self, parts: dict[str, Tensor]) -> None:
        super().__init__()
        for name, part in parts.items():
            self.register_buffer(name, part)

    def forward(self, x: Tensor) -> Tensor:
        q, s, z = (part[8:40:2] for part in (self.qdata, self.scale, self.zero))
        out: Tensor = torch.ops.etcuda.int4_linear(x, q, s, z, None, None, None, 32, "int8")
        return out


@pytest.mark.parametrize("config", [GPU, HOST], ids=["sm_90", "host"])
def test_rows_of_a_weight_that_do_not_follow_each_other(config: BackendConfig) -> None:
    model = EverySecondRow(quantized(make(Linear)).fc.weight.components).eval()
    x = torch.randn(3, 64).to(torch.bfloat16)
    program = lowered(export(model, x), config)
    found = calls(program, *KERNELS)
    assert len(found) == (not config.is_host)
    assert all(node.meta["val"].is_contiguous() for call in found for node in call.all_input_nodes)
    # The kernel must not be launched while what writes its weight runs.
    assert all(call.args[-1] == 0 for call in found)
    assert close(runnable(program)(x), model(x))

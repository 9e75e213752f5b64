"""What no kernel serves, look-ups and everything on the host become their formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from etcuda import Int4CoalescedConfig
from etcuda.options import BackendConfig
from tests.passes.linear.quantized_programs import (
    GPU,
    HOST,
    MLP,
    Linear,
    calls,
    close,
    constants,
    export,
    lowered,
    make,
    quantized,
    runnable,
)

pytestmark = pytest.mark.usefixtures("nothing_measured")


class Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 64)
        self.head = nn.Linear(64, 50, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.table(x))
        return out


@pytest.mark.parametrize("config", [GPU, HOST], ids=["sm_90", "host"])
def test_a_weight_that_a_look_up_shares_is_there_once(config: BackendConfig) -> None:
    model = quantized(make(Lookup))
    x = torch.randint(0, 50, (1, 5))
    program = lowered(export(model, x), config)
    assert not calls(program, "int4_embedding")
    storages = {tensor.untyped_storage()._cdata for tensor in constants(program).values()}
    assert len(storages) == 3
    assert close(runnable(program)(x), model(x))


@pytest.mark.parametrize("activation", ["int8", "exact"])
def test_the_host_computes_the_formula(activation: str) -> None:
    model = quantized(make(MLP, bias=True), Int4CoalescedConfig(activation_dtype=activation))
    x = torch.randn(8, 64).to(torch.bfloat16)
    program = lowered(export(model, x, dynamic=({0: Dim("rows", min=0, max=99)},)), HOST)
    assert not calls(program)
    run = runnable(program)
    for rows in (0, 1, 99):
        x = torch.randn(rows, 64).to(torch.bfloat16)
        assert close(run(x), model(x))


def test_what_no_kernel_serves_becomes_its_formula(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "etcuda")
    from etcuda.kernels.weights.int8_tensor import Int8CoalescedTensor

    model = make(Linear, bias=False)
    parts = {
        "qdata": torch.randint(-127, 128, (48, 64), dtype=torch.int8),
        "scale": torch.rand(48, 4).half(),
        "zero": torch.rand(48, 4).half(),
    }
    model.fc.weight = nn.Parameter(Int8CoalescedTensor.from_components(parts, 16), requires_grad=False)
    x = torch.randn(3, 64).to(torch.bfloat16)
    program = lowered(export(model, x))
    assert not calls(program)
    assert "is computed by its formula: groups of 16 are symmetric, got offset minimum" in caplog.text
    assert close(runnable(program)(x), model(x))


@pytest.mark.parametrize("target", ["sm_90", "host"])
def test_the_report_counts_a_product_as_one_node(target: str) -> None:
    from etcuda import partition_report

    program = export(quantized(make(Lookup)), torch.randint(0, 50, (1, 5)))
    report = partition_report(program, target=target)
    assert (report.delegated, report.total, report.refusals) == (2, 2, ())

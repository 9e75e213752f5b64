"""Quantised products are routed by their numbers of rows, and the routed program computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from etcuda import Int4CoalescedConfig, Int8CoalescedConfig
from etcuda.kernels.linear.choose import table
from etcuda.kernels.linear.choose.configs import MatmulConfig
from etcuda.kernels.linear.choose.select import Choice
from etcuda.options import BackendConfig
from tests.passes.linear.quantized_programs import (
    FUSION,
    GPU,
    HOST,
    MLP,
    calls,
    close,
    constants,
    export,
    lowered,
    make,
    modules,
    quantized,
    runnable,
)

KERNELS = tuple(f"int{bits}_{kind}" for bits in (4, 8) for kind in ("matvec", "matvec_quantized", "matmul_reordered"))


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables in the repository change."""
    monkeypatch.setattr(table, "load", lambda bits, arch: None)


class Linear(nn.Module):
    def __init__(self, k: int = 64, n: int = 48, bias: bool = True) -> None:
        super().__init__()
        self.fc = nn.Linear(k, n, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x)
        return out


CONFIGS = [
    Int4CoalescedConfig(),
    Int4CoalescedConfig(offset="symmetric", group_size=64),
    Int4CoalescedConfig(offset="minimum", scale_storage="codes"),
    Int4CoalescedConfig(activation_dtype="exact"),
    Int8CoalescedConfig(),
    Int8CoalescedConfig(group_size=None, activation_dtype="exact"),
]


@pytest.mark.parametrize("rows", [0, 1, 8, 9, 100])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_fixed_number_of_rows_goes_to_one_kernel(config: Any, rows: int) -> None:
    model = quantized(make(Linear, k=256), config)
    x = torch.randn(rows, 256).to(torch.bfloat16)
    program = lowered(export(model, x))
    (call,) = calls(program, *KERNELS)
    few = rows <= 8 and config.activation == "int8"
    assert ("matvec" in str(call.target)) == few
    assert close(runnable(program)(x), model(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_leading_sizes_are_kept(dtype: torch.dtype) -> None:
    model = quantized(make(Linear, dtype))
    x = torch.randn(2, 3, 64).to(dtype)
    program = lowered(export(model, x))
    assert close(runnable(program)(x), model(x))


def test_activations_that_several_products_take_are_rounded_once() -> None:
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
    ("other", "orders"),
    [
        (Int4CoalescedConfig(group_size=64), [(4, "int8")]),
        (Int8CoalescedConfig(), [(4, "int8"), (8, "int8")]),
        (Int4CoalescedConfig(activation_dtype="exact"), [(4, "exact"), (4, "int8")]),
    ],
    ids=["format", "bits", "activation"],
)
@pytest.mark.parametrize("fused", [False, True])
def test_activations_that_several_products_take_are_put_in_order_once(
    fused: bool, other: Any, orders: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
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
    assert sorted(node.args[1:3] for node in found) == orders
    assert {node.args[3] for node in found} == {64}
    assert {tuple(node.meta["val"][0].shape) for node in found} == {(128, 128)}
    products = calls(program, *KERNELS)
    assert len(products) == 4
    assert {node.args[13] for node in products} == {16, 64}
    assert {node.args[0].args[0] for node in products} == set(found)
    for got, expected in zip(runnable(program)(x), model(x), strict=True):
        assert close(got, expected)


@pytest.mark.parametrize("bias", [False, True])
def test_a_dynamic_number_of_rows_is_decided_on_the_host(bias: bool) -> None:
    model = quantized(make(MLP, bias=bias))
    x = torch.randn(2, 24, 64).to(torch.bfloat16)
    program = lowered(export(model, x, dynamic=({0: Dim("batch", min=1, max=4), 1: Dim("length", max=500)},)))
    conds = [n for m in modules(program) for n in m.graph.nodes if n.target is torch.ops.higher_order.cond]
    assert len(conds) == 4  # up to 8 rows, 64, more; the first two products together
    assert all(isinstance(cond.args[0].meta["val"], torch.SymBool) for cond in conds)
    run = runnable(program)
    for shape in ((1, 1), (1, 2), (2, 4), (3, 3), (4, 16), (1, 65), (4, 100), (2, 0)):
        x = torch.randn(*shape, 64).to(torch.bfloat16)
        assert close(run(x), model(x)), shape


def test_a_dynamic_number_of_rows_that_one_kernel_serves() -> None:
    model = quantized(make(MLP))
    x = torch.randn(5, 64).to(torch.bfloat16)
    program = lowered(export(model, x, dynamic=({0: Dim("few", min=3, max=8)},)))
    assert len(modules(program)) == 1
    assert {node.args[-6] for node in calls(program, "int4_matvec_quantized")} == {8}
    x = torch.randn(100, 64).to(torch.bfloat16)
    program = lowered(export(model, x, dynamic=({0: Dim("many", min=65)},)))
    assert len(modules(program)) == 1
    assert not calls(program, "int4_matvec_quantized", "int4_matvec")


def test_formats_may_differ_between_products_of_one_input() -> None:
    model = make(MLP)
    for name, config in (
        ("gate", Int4CoalescedConfig()),
        ("up", Int8CoalescedConfig()),
        ("down", Int8CoalescedConfig()),
    ):
        quantized(getattr(model, name), config)
    x = torch.randn(6, 64).to(torch.bfloat16)
    program = lowered(export(model, x, dynamic=({0: Dim("rows", min=1, max=40)},)))
    run = runnable(program)
    for rows in (1, 7, 40):
        x = torch.randn(rows, 64).to(torch.bfloat16)
        assert close(run(x), model(x))


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


def test_a_measured_table_says_how_many_rows_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    from etcuda.passes.linear import choose as choose_linear

    monkeypatch.setattr(choose_linear, "matvec_limit", lambda problem, device: 4 if problem.n == 96 else 2)
    model = quantized(make(MLP))
    x = torch.randn(5, 64).to(torch.bfloat16)
    program = lowered(export(model, x, dynamic=({0: Dim("rows", min=1, max=40)},)), without=FUSION)
    limits = [
        n.args[0].args[1] for m in modules(program) for n in m.graph.nodes if n.target is torch.ops.higher_order.cond
    ]
    assert sorted(limits) == [2, 4]
    run = runnable(program)
    for rows in (1, 2, 3, 4, 5, 40):
        x = torch.randn(rows, 64).to(torch.bfloat16)
        assert close(run(x), model(x))


@pytest.mark.parametrize("target", ["sm_90", "host"])
def test_the_report_counts_a_product_as_one_node(target: str) -> None:
    from etcuda import partition_report

    program = export(quantized(make(Lookup)), torch.randint(0, 50, (1, 5)))
    report = partition_report(program, target=target)
    assert (report.delegated, report.total, report.refusals) == (2, 2, ())

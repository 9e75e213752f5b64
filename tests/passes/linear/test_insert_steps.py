"""A dynamic M is decided on the host, in a cond for each change of kernels."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim

from etcuda import Int4CoalescedConfig, Int8CoalescedConfig
from tests.passes.linear.quantized_programs import (
    FUSION,
    MLP,
    calls,
    close,
    export,
    lowered,
    make,
    modules,
    quantized,
    runnable,
)

pytestmark = pytest.mark.usefixtures("nothing_measured")


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

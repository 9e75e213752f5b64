"""A gated activation of a dynamic number of tokens is computed where it is quantized or reordered: in branches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from etcuda import Int4CoalescedConfig
from etcuda.kernels.linear.choose import table
from etcuda.passes.graph.branches import inputs_of
from etcuda.passes.recognize.gate import gate_nodes
from tests.passes.linear.activation_programs import arguments
from tests.passes.linear.quantized_programs import (
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

K = 256


class Down(nn.Module):
    """A product of a function of two tensors."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.down = nn.Linear(K, 64, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        h = self.function(x, y)
        return (self.down(h[0]), h[1]) if isinstance(h, tuple) else self.down(h)


def rows_of(rows: int, width: int = K) -> tuple[Tensor, Tensor]:
    torch.manual_seed(rows)
    return torch.randn(1, rows, width).bfloat16(), torch.randn(1, rows, width).bfloat16()


def dynamic(most: int) -> tuple[Any, ...]:
    rows = Dim("rows", min=1, max=most)
    return {1: rows}, {1: rows}


def outside(program: Any) -> set[str]:
    return {str(node.target) for node in program.graph.nodes}


def check(program: Any, model: nn.Module, sizes: tuple[int, ...], width: int = K) -> None:
    run = runnable(program)
    for rows in sizes:
        x = rows_of(rows, width)
        # A program does not take what it does not read.
        got, wanted = run(*x[: len(program.graph_signature.user_inputs)]), model(*x)
        if isinstance(wanted, tuple):  # The results of a delegate have an order of their own.
            got, wanted = (sorted(each, key=lambda tensor: tensor.shape[-1]) for each in (got, wanted))
        else:
            got, wanted = [got], [wanted]
        assert all(close(*pair) for pair in zip(got, wanted, strict=True)), rows


@pytest.mark.parametrize("measured", [True, False])
def test_in_every_branch(measured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not measured:  # Up to 8 rows, up to 64, and more: a branch in a branch.
        monkeypatch.setattr(table, "load", lambda bits, arch: None)
    model = quantized(make(Down, function=lambda x, y: F.silu(x) * y))
    program = lowered(export(model, *rows_of(40), dynamic=dynamic(300)))
    assert "aten.silu.default" not in outside(program)
    assert len(modules(program)) > (3 if not measured else 2)
    if measured:  # Its products on tensor cores are those in CUDA C++.
        assert {arguments(node)["gate_activation"] for node in calls(program, "gate_reorder")} == {"silu"}
        assert not calls(program, "reorder_activation")
    check(program, model, (1, 2, 8, 9, 64, 65, 300))


def test_both_side_by_side() -> None:
    model = quantized(make(Down, function=lambda x, y: F.gelu(x[..., :K]) * x[..., K:]))
    program = lowered(export(model, *rows_of(40, 2 * K), dynamic=dynamic(300)))
    assert outside(program).isdisjoint({"aten.gelu.default", "aten.slice.Tensor", "aten.mul.Tensor"})
    found = [arguments(node) for node in calls(program, "gate_reorder")]
    assert found
    assert all(each["up"] is None for each in found)
    check(program, model, (1, 9, 300), 2 * K)


def test_behind_products() -> None:
    # Products of many tokens do not quantize where those of few do; exact ones are the same.
    model = quantized(make(MLP, dim=K, hidden=2 * K), Int4CoalescedConfig(activation_dtype="exact"))
    x = torch.randn(1, 40, K).bfloat16()
    program = lowered(export(model, x, dynamic=({1: Dim("rows", min=1, max=300)},)))
    assert "aten.silu.default" not in outside(program)
    assert calls(program, "gate_reorder")
    run = runnable(program)
    for rows in (1, 2, 3, 64, 300):
        x = torch.randn(1, rows, K).bfloat16()
        assert close(run(x), model(x)), rows


@pytest.mark.parametrize(
    ("function", "width"),
    [
        (lambda x, y: ((h := F.silu(x) * y), h), K),
        (lambda x, y: ((g := F.silu(x)) * y, g + 1), K),
        (lambda x, y: F.silu(x[..., K:]) * x[..., :K], 2 * K),
        (lambda x, y: F.relu(x) * y, K),
    ],
    ids=["read elsewhere", "a part read elsewhere", "two views of one tensor", "another activation"],
)
def test_outside_where_it_must_be(function: Any, width: int) -> None:
    model = quantized(make(Down, function=function))
    program = lowered(export(model, *rows_of(40, width), dynamic=dynamic(300)))
    assert not calls(program, "gate_reorder", "gate_quantize")
    assert "aten.mul.Tensor" in outside(program)
    check(program, model, (1, 9, 300), width)


def test_the_nodes_and_what_they_read() -> None:
    model = make(Down, function=lambda x, y: F.silu(x) * y)
    program = export(model, *rows_of(4))
    (y,) = (node for node in program.graph.nodes if node.target is torch.ops.aten.mul.Tensor)
    nodes = gate_nodes(y, list(y.users))
    assert [str(node.target) for node in nodes] == ["aten.silu.default", "aten.mul.Tensor"]
    assert [node.name for node in inputs_of(nodes)] == ["x", "y"]
    assert gate_nodes(y, []) == []
    assert gate_nodes(nodes[0], [y]) == []

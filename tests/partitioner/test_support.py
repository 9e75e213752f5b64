"""Refusals that hold for every operator."""

from __future__ import annotations

import pytest
import torch
from torch.fx import Graph

from etcuda import partition_report
from etcuda.options import BackendConfig
from etcuda.partitioner.support import refuse

aten = torch.ops.aten
HOST = BackendConfig("host")


def _call(op: object, *values: object) -> object:
    graph = Graph()
    inputs = []
    for value in values:
        node = graph.placeholder("x")
        node.meta["val"] = value
        inputs.append(node)
    call = graph.call_function(op, tuple(inputs))  # type: ignore[arg-type]
    call.meta["val"] = values[0]
    refusal = refuse(call, HOST)
    return None if refusal is None else refusal.reason


@pytest.mark.parametrize(
    ("op", "value", "part"),
    [
        (aten.sin.default, torch.zeros(2, dtype=torch.complex64), "torch.complex64"),
        (aten.sin.default, torch.zeros(2, dtype=torch.float8_e4m3fn), "torch.float8_e4m3fn"),
        (aten.sin.default, torch.zeros(2).to_sparse(), "torch.sparse_coo"),
        (aten.sin.default, torch.zeros([1] * 17), "got 17"),
        (aten.sin.default, None, "no metadata"),
        (len, torch.zeros(2), "not an ATen operator"),
        (aten.threshold_backward.default, torch.zeros(2), "gradients"),
        (torch.ops.higher_order.associative_scan, torch.zeros(2), "control flow associative_scan"),
    ],
)
def test_refusals_that_hold_for_every_operator(op: object, value: object, part: str) -> None:
    reason = _call(op, value)
    assert isinstance(reason, str)
    assert part in reason


def test_quantized_operators_are_refused() -> None:
    import executorch.exir  # noqa: F401  registers them

    reason = _call(torch.ops.quantized_decomposed.embedding_byte.default, torch.zeros(2, dtype=torch.int8))
    assert "quantized operators are not compiled" in str(reason)


def test_a_table_inside_a_branch_is_refused() -> None:
    branch = torch.fx.symbolic_trace(torch.nn.Identity())
    branch.register_buffer("table", torch.zeros(3))
    with branch.graph.inserting_before(branch.graph.output_node()):
        branch.graph.get_attr("table")
    owner = torch.fx.GraphModule(torch.nn.Module(), Graph())
    owner.add_module("branch", branch)
    call = owner.graph.call_function(torch.ops.higher_order.cond, (True, owner.graph.get_attr("branch"), None, ()))
    call.meta["val"] = [torch.zeros(2)]
    refusal = refuse(call, HOST)
    assert refusal is not None
    assert "table inside it is a constant of shape (3,)" in refusal.reason


@pytest.mark.parametrize("op", ["map", "scan"])
@pytest.mark.parametrize("dynamic", [0, 1])
def test_rounds_with_dynamic_sizes(op: str, dynamic: int) -> None:
    class Rounds(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            if op == "map":
                return [torch._higher_order_ops.map(lambda row, one: row.relu() + one, x, x.new_ones(()))]
            carry, rows = torch._higher_order_ops.scan(lambda c, row: (c + 1, row * c), x.new_ones(()), x)
            return [carry, rows]

    sizes = [5, 6]
    sizes[dynamic] = 9
    program = torch.export.export(
        Rounds(),
        (torch.ones(sizes),),
        dynamic_shapes=({dynamic: torch.export.Dim("length", min=8, max=64)},),
        strict=False,
    )
    refusals = partition_report(program, "host").refusals
    if dynamic == 1:
        (refusal,) = (each for each in refusals if op in each.op)
        assert "dynamic sizes along the dimension that it goes over alone, got s" in refusal.reason
    else:
        assert refusals == ()

"""Arguments by name, and new calls with metadata."""

from __future__ import annotations

import operator

import torch

from etcuda.passes.graph.calls import arguments, erase_unused, insert_call, insert_results, result_of, returns_alias
from tests.partitioner.programs import edge, export

aten = torch.ops.aten


def test_arguments_have_names_and_defaults() -> None:
    program = export(lambda x: torch.add(x, x, alpha=3) + x.sum(1), torch.ones(3, 3))
    add = next(node for node in program.graph.nodes if node.target is aten.add.Tensor)
    (x,) = (node for node in program.graph.nodes if node.op == "placeholder")
    assert arguments(add) == {"self": x, "other": x, "alpha": 3}
    total = next(node for node in program.graph.nodes if node.target is aten.sum.dim_IntList)
    assert arguments(total) == {"self": x, "dim": [1], "keepdim": False, "dtype": None}


def test_arguments_of_an_edge_operator_by_the_aten_schema() -> None:
    program = edge(lambda x: x + 1, torch.ones(3))
    add = next(node for node in program.graph.nodes if "add" in str(node.target))
    assert arguments(add, aten.add.Tensor)["alpha"] == 1
    assert list(arguments(add, aten.add.Tensor)) == ["self", "other", "alpha"]


def test_a_new_call_has_metadata_and_the_origin_of_its_place() -> None:
    program = export(lambda x: x.sin(), torch.ones(3, 4))
    sin = next(node for node in program.graph.nodes if node.target is aten.sin.default)
    made = insert_call(sin, aten.transpose.int, (sin.args[0], 0, 1))
    assert made.meta["val"].shape == (4, 3)
    assert made.meta.get("stack_trace") == sin.meta.get("stack_trace") is not None
    assert made.next is sin


def test_results_of_a_call() -> None:
    program = export(lambda x: x.sin(), torch.ones(3, 4))
    sin = next(node for node in program.graph.nodes if node.target is aten.sin.default)
    values, indices = insert_results(sin, aten.max.dim, (sin.args[0], 1))
    assert (values.meta["val"].shape, indices.meta["val"].dtype) == ((3,), torch.int64)
    call = values.args[0]
    assert isinstance(call, torch.fx.Node)
    assert (result_of(call, 0), result_of(call, 1)) == (values, indices)
    program.graph.erase_node(indices)
    again = result_of(call, 1)
    assert again is not indices
    assert (again.target, again.meta["val"].shape, call.next) == (operator.getitem, (3,), again)


def test_what_nothing_reads_is_erased_up_to_a_node() -> None:
    program = export(lambda x: x.sin(), torch.ones(3, 4))
    sin = next(node for node in program.graph.nodes if node.target is aten.sin.default)
    first = insert_call(sin, aten.cos.default, (sin.args[0],))
    second = insert_call(sin, aten.neg.default, (first,))
    third = insert_call(sin, aten.neg.default, (second,))
    erase_unused(second, first)
    assert third in program.graph.nodes
    erase_unused(third, first)
    assert [node in program.graph.nodes for node in (first, second, third)] == [True, False, False]


def test_operators_that_return_a_view() -> None:
    assert returns_alias(aten.view.default)
    assert returns_alias(aten.sin_.default)
    assert not returns_alias(aten.view_copy.default)
    assert not returns_alias(operator.getitem)

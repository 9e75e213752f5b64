"""Nests of ``cond`` by the number of tokens are read as lists, and only where straight code can do the same."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node

from etcuda.passes.recognize.ways import COND, Ways, recognize_ways
from tests.passes.linear.quantized_programs import MLP, OPS, export, lowered, make, quantized

aten = torch.ops.aten


def dynamic_mlp(**dims: Any) -> ExportedProgram:
    """An MLP in int4 whose number of tokens is dynamic, after the passes."""
    x = torch.randn(40, 256).to(torch.bfloat16)
    return lowered(export(quantized(make(MLP, dim=256, hidden=512)), x, dynamic=({0: Dim("rows", **dims)},)))


def outermost(program: ExportedProgram) -> list[Node]:
    return [node for node in program.graph.nodes if node.target is COND]


def test_a_nest_is_a_list() -> None:
    program = dynamic_mlp(min=2, max=300)
    both, down = (recognize_ways(program.graph_module, node) for node in outermost(program))
    assert isinstance(both, Ways)
    assert isinstance(down, Ways)
    for found, products in ((both, 2), (down, 1)):
        limits = [way.most for way in found.ways]
        assert len(limits) > 2
        assert limits[-1] is None
        assert limits[:-1] == sorted(way.most for way in found.ways[:-1] if way.most is not None)
        assert all(len(way.products) == products for way in found.ways)
        assert isinstance(found.size, Node)
        assert str(found.size.meta["val"]) == str(outermost(program)[0].args[0].args[0].meta["val"])  # type: ignore[union-attr]
    # The gate is computed in the branches.
    assert [len(way.activations) for way in down.ways] == [2] * len(down.ways)


def replace_target(name: str, target: Any) -> Callable[[GraphModule], None]:
    def change(module: GraphModule) -> None:
        for node in module.graph.nodes:
            if getattr(node.target, "__name__", "") == name or str(node.target) == name:
                node.target = target

    return change


def write_gate(*args: Any) -> None:
    raise AssertionError("is not called")


def return_twice(module: GraphModule) -> None:
    output = module.graph.output_node()
    (returned,) = output.args
    output.args = ((returned[0],) * len(returned),)  # type: ignore[index,arg-type]


def read_product(module: GraphModule) -> None:
    (product, *_) = [node for node in module.graph.nodes if str(node.target) == "etcuda.int4_matvec_quantized.default"]
    with module.graph.inserting_before(module.graph.output_node()):
        extra = module.graph.call_function(aten.neg.default, (product,))
    extra.meta["val"] = product.meta["val"]


def keep_gate(module: GraphModule) -> None:
    for node in module.graph.nodes:
        if node.target is OPS.gate_quantize.default:
            node.args = (*node.args[:3], True, *node.args[4:])


@pytest.mark.parametrize(
    ("place", "change", "reason"),
    [
        (0, return_twice, "returns something else than products"),
        (0, read_product, "reads what a kernel computes|is read by neg"),
        (1, replace_target("etcuda.gate_quantize.default", write_gate), "is no operator that only computes|reads what"),
        (1, keep_gate, "keeps its product"),
    ],
    ids=["twice", "read", "other", "kept"],
)
def test_other_branches_are_refused(place: int, change: Callable[[GraphModule], None], reason: str) -> None:
    program = dynamic_mlp(min=2, max=300)
    cond = outermost(program)[place]
    branch = getattr(program.graph_module, str(cond.args[1].target))  # type: ignore[union-attr]
    change(branch)
    found = recognize_ways(program.graph_module, cond)
    assert isinstance(found, str)
    assert re.search(reason, found), found


def test_other_predicates_are_refused() -> None:
    program = dynamic_mlp(min=2, max=300)
    first, second = outermost(program)
    predicate: Any = first.args[0]
    predicate.target = operator.lt
    assert (
        recognize_ways(program.graph_module, first)
        == "its predicate is not that a number is at most another one, above 0"
    )
    # Within, the choice is by another number.
    branch = getattr(program.graph_module, str(second.args[2].target))  # type: ignore[union-attr]
    (inner,) = [node for node in branch.graph.nodes if node.target is COND]
    size: Any = inner.args[0].args[0]
    size.meta["val"] = size.meta["val"] * 2
    assert recognize_ways(program.graph_module, second) == "the inner and the outer choice are not by the same number"

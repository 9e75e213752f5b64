"""A choice by a size is made on the host, and both branches compute."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node

from etcuda.passes.graph.branches import Branch, inputs_of, insert_choice
from etcuda.passes.graph.calls import insert_call
from tests.partitioner.programs import export

aten = torch.ops.aten


def branch(name: str, op: torch._ops.OpOverload, operands: list[Node]) -> Branch:
    def build(module: GraphModule, before: Node, inside: Mapping[Node, Node]) -> list[Node]:
        first = insert_call(before, op, tuple(inside[operand] for operand in operands))
        return [first, insert_call(before, aten.neg.default, (first,))]

    return Branch(name, build)


def chosen(twice: bool) -> tuple[ExportedProgram, Node]:
    """y = x + other up to 3 rows, x - other for more, and -y, in the place of one sum and its negative."""
    shapes = [{0: Dim("n", min=1, max=9)}] * 2
    program = export(lambda x, y: (x + y, -(x + y)), torch.ones(4, 2), torch.ones(4, 2), dynamic=shapes)
    module = program.graph_module
    x, y = (node for node in program.graph.nodes if node.op == "placeholder")
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    first, second = output.args[0]
    operands = [x, x] if twice else [x, y]
    size = insert_call(first, aten.sym_size.int, (x, 0))
    ways = (branch("few", aten.add.Tensor, operands), branch("many", aten.sub.Tensor, operands))
    results = insert_choice(module, first, size, 3, ways, operands, [first, second])
    for node, result in zip((first, second), results, strict=True):
        node.replace_all_uses_with(result)
    program.graph.eliminate_dead_code()
    module.recompile()
    (cond,) = (node for node in program.graph.nodes if node.target is torch.ops.higher_order.cond)
    return program, cond


def test_both_ways() -> None:
    program, cond = chosen(False)
    program.graph.lint()
    assert isinstance(cond.args[0].meta["val"], torch.SymBool)  # type: ignore[union-attr]
    assert [str(node.target) for node in cond.args[1:3]] == ["few_0", "many_0"]  # type: ignore[union-attr,misc]
    for rows, sign in ((1, 1), (3, 1), (4, -1), (9, -1)):
        x, y = torch.randn(rows, 2), torch.randn(rows, 2)
        first, second = program.module(check_guards=False)(x, y)
        assert torch.equal(first, x + sign * y)
        assert torch.equal(second, -first)


def test_results_have_metadata_and_names_are_new() -> None:
    program, cond = chosen(False)
    assert [tuple(map(str, value.shape[1:])) for value in cond.meta["val"]] == [("2",), ("2",)]
    again = insert_choice(
        program.graph_module, cond, cond.args[0].args[0], 5, (branch("few", aten.mul.Tensor, [*cond.args[3]]),) * 2,  # type: ignore[union-attr,misc,arg-type]
        [*cond.args[3]], [cond],  # type: ignore[misc]
    )  # fmt: skip
    names = {str(node.target) for node in program.graph.nodes if node.op == "get_attr"}
    assert names == {"few_0", "many_0", "few_1", "few_2"}
    assert again[0].meta["val"].shape[1] == 2


def test_an_operand_that_occurs_twice_is_taken_once() -> None:
    program, cond = chosen(True)
    assert len(cond.args[3]) == 1  # type: ignore[arg-type]
    x = torch.randn(4, 2)
    assert torch.equal(program.module(check_guards=False)(x, x)[0], torch.zeros(4, 2))


def test_inputs_of() -> None:
    program = export(lambda x, y: (x.sin() + y) * x, torch.ones(2), torch.ones(2))
    x, y, sin, add, mul, _ = program.graph.nodes
    assert inputs_of([add, mul]) == [sin, y, x]
    assert inputs_of([sin, add, mul]) == [x, y]
    assert inputs_of([]) == []

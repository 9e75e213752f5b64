"""A choice between two ways to compute something, which the host makes at every call: ``cond`` on a size."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.fx import Graph, GraphModule, Node

from etcuda.passes.graph.calls import insert_call
from etcuda.passes.graph.dead_code import erase_dead

# Inserts calls into a branch and returns the results. Gets the branch's module, the node in front of which the calls
# are to stand, and for each operand the node that stands for it in the branch.
Build = Callable[[GraphModule, Node, Mapping[Node, Node]], Sequence[Node]]


@dataclasses.dataclass(frozen=True)
class Branch:
    """One way.

    Attributes:
        name: of the submodule, which gets a number behind it.
        build: inserts its calls.
    """

    name: str
    build: Build


def insert_choice(
    module: GraphModule,
    before: Node,
    size: Node | int,
    limit: int,
    branches: tuple[Branch, Branch],
    operands: Sequence[Node],
    replaced: Sequence[Node],
) -> list[Node]:
    """Inserts ``cond(size <= limit, *branches, operands)`` in front of ``before``.

    Args:
        module: owner of the graph; it gets a submodule for each branch.
        before: a node of its graph.
        size: a number computed from sizes.
        limit: the greatest size for which the first branch is taken.
        branches: each yields tensors of the same shapes and dtypes.
        operands: what the branches read. Two of them must not share memory; a node that occurs twice is taken once.
        replaced: the nodes that the results stand for, whose origin they get.

    Returns:
        The results.
    """
    operands = list(dict.fromkeys(operands))
    predicate = insert_call(before, operator.le, (size, limit))
    names = [_add_branch(module, branch, operands) for branch in branches]
    graph = before.graph
    with graph.inserting_before(before):
        modules = [graph.get_attr(name) for name in names]
        cond = graph.call_function(torch.ops.higher_order.cond, (predicate, *modules, tuple(operands)))
    outputs = getattr(module, names[0]).graph.output_node().args[0]
    cond.meta = {**before.meta, "val": tuple(output.meta["val"] for output in outputs)}
    results = []
    for index, origin in enumerate(replaced):
        with graph.inserting_before(before):
            result = graph.call_function(operator.getitem, (cond, index))
        result.meta = {**origin.meta, "val": cond.meta["val"][index]}
        results.append(result)
    return results


def inputs_of(nodes: Sequence[Node]) -> list[Node]:
    """What nodes read that is none of them, each once."""
    return list(dict.fromkeys(read for node in nodes for read in node.all_input_nodes if read not in nodes))


def _add_branch(module: GraphModule, branch: Branch, operands: Sequence[Node]) -> str:
    inner = GraphModule(torch.nn.Module(), Graph())
    graph = inner.graph
    inside: dict[Node, Node] = {}
    for operand in operands:
        inside[operand] = graph.placeholder(operand.name)
        inside[operand].meta["val"] = operand.meta["val"]
    output = graph.output(())
    results = branch.build(inner, output, inside)
    output.args = (tuple(results),)
    output.meta["val"] = tuple(result.meta["val"] for result in results)
    erase_dead(graph)
    index = 0
    while hasattr(module, name := f"{branch.name}_{index}"):
        index += 1
    setattr(module, name, inner)
    return name

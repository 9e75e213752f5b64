"""Metadata is computed again where a call or an input's value is another one, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from etcuda.passes.graph.dead_code import erase_dead
from etcuda.passes.graph.meta import forget_computed, refresh_meta
from etcuda.torch_private import storage_key

aten = torch.ops.aten


def chain(*calls: tuple[Any, Any]) -> tuple[Graph, list[Node]]:
    """A graph of calls, each on the result of the one before and on arguments, with metadata of another's making."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    graph = Graph()
    nodes = [graph.placeholder("x")]
    with mode:
        nodes[0].meta["val"] = torch.empty(4, 6)
    for target, rest in calls:
        nodes.append(graph.call_function(target, (nodes[-1], *rest)))
        nodes[-1].meta["val"] = nodes[0].meta["val"]
    graph.output(nodes[-1])
    return graph, nodes


def values(nodes: list[Node]) -> list[Any]:
    return [node.meta["val"] for node in nodes]


def sin_permute_cos() -> tuple[Graph, list[Node]]:
    return chain((aten.sin.default, ()), (aten.permute.default, ([1, 0],)), (aten.cos.default, ()))


def test_what_others_made_is_computed_and_what_we_computed_stays() -> None:
    graph, nodes = sin_permute_cos()
    foreign = nodes[0].meta["val"]
    refresh_meta(graph)
    first = values(nodes)
    assert [tuple(value.shape) for value in first] == [(4, 6), (4, 6), (6, 4), (6, 4)]
    assert all(value is not foreign for value in first[1:])
    refresh_meta(graph)
    assert all(now is before for now, before in zip(values(nodes), first, strict=True))


@pytest.mark.parametrize("change", ["target", "args", "kwargs", "value", "input"])
def test_a_change_is_seen(change: str) -> None:
    graph, nodes = sin_permute_cos()
    refresh_meta(graph)
    permute = nodes[2]
    if change == "target":
        permute.target, permute.args = aten.view.default, (nodes[1], [3, 8])
    elif change == "args":
        permute.args = (nodes[1], [0, 1])
    elif change == "kwargs":
        permute.target, permute.args, permute.kwargs = aten.sum.dim_IntList, (nodes[1], [0]), {"dtype": torch.float64}
    elif change == "value":
        permute.meta["val"] = nodes[1].meta["val"]
    else:
        with nodes[0].meta["val"].fake_mode:
            nodes[0].meta["val"] = torch.empty(8, 2, dtype=torch.float64)
    refresh_meta(graph)
    found = [nodes[3].meta["val"].shape, nodes[3].meta["val"].dtype]
    assert (
        found
        == {
            "target": [(3, 8), torch.float32],
            "args": [(4, 6), torch.float32],
            "kwargs": [(6,), torch.float64],
            "value": [(6, 4), torch.float32],
            "input": [(2, 8), torch.float64],
        }[change]
    )


def test_a_value_that_is_as_before_stays_so_that_its_readers_do() -> None:
    graph, nodes = sin_permute_cos()
    refresh_meta(graph)
    last = nodes[3].meta["val"]
    nodes[1].target = aten.exp.default
    before = nodes[1].meta["val"]
    refresh_meta(graph)
    assert nodes[1].meta["val"] is before
    assert nodes[3].meta["val"] is last


def test_a_view_shares_memory_with_what_it_views_when_that_is_another_tensor() -> None:
    graph, nodes = chain((aten.permute.default, ([1, 0],)), (aten.permute.default, ([1, 0],)))
    refresh_meta(graph)
    with nodes[0].meta["val"].fake_mode:
        nodes[0].meta["val"] = torch.empty(4, 6)
    refresh_meta(graph)
    assert len({storage_key(value) for value in values(nodes)}) == 1


def test_strides_are_seen() -> None:
    graph, nodes = sin_permute_cos()
    refresh_meta(graph)
    with nodes[0].meta["val"].fake_mode:
        nodes[0].meta["val"] = torch.empty(6, 4).t()
    refresh_meta(graph)
    assert nodes[1].meta["val"].stride() == (1, 4)
    assert nodes[3].meta["val"].stride() == (4, 1)


def test_nothing_is_kept_of_what_was_computed() -> None:
    graph, nodes = sin_permute_cos()
    refresh_meta(graph)
    forget_computed(graph)
    assert [set(node.meta) for node in nodes] == [{"val"}] * 4


def test_dead_calls_go_and_placeholders_stay() -> None:
    graph, nodes = sin_permute_cos()
    with graph.inserting_before(nodes[1]):
        unused = graph.placeholder("unused")
    graph.output_node().args = (nodes[1],)
    assert erase_dead(graph) == 2
    assert [node for node in graph.nodes if node.op != "output"] == [nodes[0], unused, nodes[1]]

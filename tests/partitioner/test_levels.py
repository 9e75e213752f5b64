"""Partitions of random graphs are convex, whole, and can run one after another."""

from __future__ import annotations

import operator

from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx import Graph, Node

from etcuda.partitioner.levels import partitions


def make_graph(edges: list[list[int]]) -> list[Node]:
    """One placeholder, then a call per entry that reads the nodes at the given positions."""
    graph = Graph()
    nodes = [graph.placeholder("x")]
    for sources in edges:
        inputs = [nodes[source % len(nodes)] for source in sources]
        nodes.append(graph.call_function(operator.add, (inputs[0], inputs[-1]) if inputs else (1, 2)))
    graph.output(nodes[-1])
    return nodes


def runs_in_order(graph: Graph, groups: list[list[Node]]) -> bool:
    """Whether the graph with each group as one step has an order without cycles."""
    step = {node: ("group", index) for index, group in enumerate(groups) for node in group}
    steps = {node: step.get(node, ("node", node.name)) for node in graph.nodes}
    waits: dict[object, set[object]] = {each: set() for each in steps.values()}
    for node in graph.nodes:
        waits[steps[node]] |= {steps[source] for source in node.all_input_nodes} - {steps[node]}
    while waits:
        ready = {each for each, sources in waits.items() if not sources & waits.keys()}
        if not ready:
            return False
        waits = {each: sources for each, sources in waits.items() if each not in ready}
    return True


@settings(max_examples=200, deadline=None)
@given(
    edges=st.lists(st.lists(st.integers(0, 50), max_size=2), min_size=1, max_size=30),
    chosen=st.lists(st.booleans(), min_size=30, max_size=30),
    numbers=st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_random_graphs(edges: list[list[int]], chosen: list[bool], numbers: list[bool]) -> None:
    nodes = make_graph(edges)
    graph = nodes[0].graph
    claimed = {node for node, claim in zip(nodes[1:], chosen, strict=False) if claim}
    floating = {node for node, number in zip(nodes[1:], numbers, strict=False) if number}
    groups = partitions(graph, claimed, floating.__contains__, {nodes[0]})
    inside = [node for group in groups for node in group]
    assert len(inside) == len(set(inside))
    assert claimed - floating <= set(inside) <= claimed
    assert runs_in_order(graph, groups)
    for group in groups:
        assert all(user in group for node in group if node in floating for user in node.users)


def test_one_partition_where_nothing_is_left_out() -> None:
    nodes = make_graph([[0], [1, 0], [2], [3, 1]])
    assert partitions(nodes[0].graph, set(nodes[1:]), lambda _: False) == [nodes[1:]]


def test_a_number_for_two_partitions_stays_outside() -> None:
    nodes = make_graph([[0], [0, 1], [2], [3, 1]])  # 1 is a number that 2 and 4 read; 3 is not claimed
    claimed = {nodes[1], nodes[2], nodes[4]}
    groups = partitions(nodes[0].graph, claimed, lambda node: node is nodes[1])
    assert groups == [[nodes[2]], [nodes[4]]]


def test_large_graphs() -> None:
    # Of quadratic time this would be minutes.
    nodes = make_graph([[position, max(0, position - 7)] for position in range(20_000)])
    claimed = {node for position, node in enumerate(nodes[1:]) if position % 50}
    groups = partitions(nodes[0].graph, claimed, lambda _: False)
    assert len(groups) == 400

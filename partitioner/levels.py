"""Cuts a graph into convex partitions in linear time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Set

from torch.fx import Graph, Node

_OUTSIDE = -1


def partitions(
    graph: Graph, claimed: set[Node], floats: Callable[[Node], bool], fixed: Set[Node] = frozenset()
) -> list[list[Node]]:
    """Groups the claimed nodes into the fewest partitions that can run one after another.

    Every node gets a time: claimed nodes even ones, the others odd ones, no node earlier than its inputs, and
    strictly later than an input of the other kind. Claimed nodes of one time are one partition: a path between two of
    them through a node that is not claimed would have made the later one later still.

    Nodes that ``floats`` accepts (numbers computed from shapes) are inside a partition only if all their users are;
    otherwise the host computes them, so that no partition has a number as a result.

    Args:
        graph: in topological order.
        claimed: nodes to group.
        floats: whether a claimed node yields a number.
        fixed: placeholders of weights and constants.

    Returns:
        Lists of nodes in graph order; the partitions in an order in which they can run.
    """
    on_host: set[Node] = set()
    while True:
        inside = claimed - on_host
        times = _earliest(graph, inside)
        _sink(graph, inside, times, fixed)
        escaping = {n for n in inside if floats(n) and any(times.get(u, _OUTSIDE) != times[n] for u in n.users)}
        if not escaping:
            break
        on_host |= escaping
    groups: dict[int, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        if node in inside:
            groups[times[node]].append(node)
    return [groups[time] for time in sorted(groups)]


def _earliest(graph: Graph, inside: set[Node]) -> dict[Node, int]:
    times: dict[Node, int] = {}
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            times[node] = _OUTSIDE
            continue
        time = 0 if node in inside else _OUTSIDE
        for source in node.all_input_nodes:
            differs = (source in inside) != (node in inside)
            time = max(time, times[source] + 1 if differs else times[source])
        times[node] = time
    return times


def _sink(graph: Graph, inside: set[Node], times: dict[Node, int], fixed: Set[Node]) -> None:
    """Moves what depends on no input to its first user, so that tables and masks are not passed between partitions."""
    free: set[Node] = set()
    for node in graph.nodes:
        if node in inside and all(source in free or source in fixed for source in node.all_input_nodes):
            free.add(node)
    for node in reversed(graph.nodes):
        if node in free and node.users:
            first = min(times[user] if user in inside else times[user] - 1 for user in node.users)
            times[node] = max(times[node], first)

"""Calls that nothing reads are erased."""

from __future__ import annotations

from torch.fx import Graph


def erase_dead(graph: Graph) -> int:
    """Erases the calls of one graph that nothing reads; returns how many there were.

    ``Graph.eliminate_dead_code`` also goes through all branches of its control flow and makes their code anew, which
    takes longer than a pass where there are some for each layer.
    """
    erased = 0
    for node in reversed(graph.nodes):
        if not node.users and not node.is_impure():
            graph.erase_node(node)
            erased += 1
    return erased

"""Which nodes compute a gated activation, so that they can be moved to who reads it."""

from __future__ import annotations

from torch.fx import Node

from etcuda.passes.graph.meta import tensor_of
from etcuda.passes.recognize.activation import Gate, other_readers, recognize_gate


def gate_nodes(y: Node, readers: list[Node]) -> list[Node]:
    """The nodes that compute a gated activation from its gate and its other factor, in order, ``y`` last.

    Args:
        y: what may be a gated activation.
        readers: calls that read it.

    Returns:
        Nothing if ``y`` is something else, if other calls read it or a part of it, or if it is computed from two views
        of one tensor, which a branch cannot take.
    """
    gate = recognize_gate(y)
    if not isinstance(gate, Gate) or other_readers(y, readers):
        return []
    found: dict[Node, None] = {}
    pending = [y]
    while pending:
        node = pending.pop()
        if node not in (gate.gate, gate.up, *found):
            found[node] = None
            pending += node.all_input_nodes
    if any(user not in found for node in found if node is not y for user in node.users):
        return []
    nodes = [node for node in y.graph.nodes if node in found]
    memory = [tensor_of(node).untyped_storage()._cdata for node in inputs_of(nodes)]
    return nodes if len(set(memory)) == len(memory) else []


def inputs_of(nodes: list[Node]) -> list[Node]:
    """What nodes read that is none of them, each once."""
    return list(dict.fromkeys(read for node in nodes for read in node.all_input_nodes if read not in nodes))

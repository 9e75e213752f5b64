"""A gated activation, activation(gate) * up, found by its formula.

``recognize_gate`` proves that a tensor is one, or says in words why it is not; ``gate_nodes`` proves that its nodes can
be moved to its readers, or returns none. In doubt it is not, and they cannot. Nothing is changed.
"""

from __future__ import annotations

import dataclasses

import torch
from torch.fx import Node

from etcuda.passes.graph.branches import inputs_of
from etcuda.passes.graph.meta import tensor_of
from etcuda.passes.recognize.rows import other_readers
from etcuda.passes.recognize.terms import alike, describe, name_of, operands
from etcuda.torch_private import storage_key

aten = torch.ops.aten

_ACTIVATIONS = {
    (aten.silu.default, None): "silu",
    (aten.gelu.default, "none"): "gelu_erf",
    (aten.gelu.default, "tanh"): "gelu_tanh",
}


@dataclasses.dataclass(frozen=True)
class Gate:
    """y = activation(gate) * up, as ``etcuda::gate_quantize`` takes it.

    Attributes:
        gate: in the shape and dtype of y; without ``up`` [..., 2 K], both side by side.
        up: likewise, or ``None``.
        activation: "silu", "gelu_erf" or "gelu_tanh".
    """

    gate: Node
    up: Node | None
    activation: str


def recognize_gate(y: Node) -> Gate | str:
    """The gated activation that computes ``y``, or why there is none."""
    pair = operands(y, aten.mul.Tensor)
    if pair is None:
        return f"{name_of(y)} is no product of two tensors"
    for factor, up in (pair, pair[::-1]):
        activation = _ACTIVATIONS.get((factor.target, _approximation(factor)))  # type: ignore[arg-type]
        if factor.op != "call_function" or activation is None:
            continue
        gate = factor.args[0]
        assert isinstance(gate, Node)
        if not alike(tensor_of(gate), tensor_of(up)):
            return f"gate is {describe(tensor_of(gate))} and up {describe(tensor_of(up))}"
        both = _halves(gate, up)
        return Gate(gate, up, activation) if both is None else Gate(both, None, activation)
    return f"neither factor is silu or gelu of a gate, but {name_of(pair[0])} and {name_of(pair[1])}"


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
    memory = [storage_key(tensor_of(node)) for node in inputs_of(nodes)]
    return nodes if len(set(memory)) == len(memory) else []


def _approximation(node: Node) -> object:
    if node.target is not aten.gelu.default:
        return None
    return node.kwargs.get("approximate", "none")


def _halves(gate: Node, up: Node) -> Node | None:
    """The tensor whose first half along the last dimension is ``gate`` and whose second is ``up``."""
    whole = gate.args[0] if gate.target is aten.slice.Tensor else None
    if not isinstance(whole, Node) or up.target is not aten.slice.Tensor or up.args[0] is not whole:
        return None
    size, last = tensor_of(whole).shape[-1], tensor_of(whole).dim() - 1
    half = tensor_of(gate).shape[-1]
    if size != 2 * half or any(len(part.args) != 4 or part.args[1] not in (-1, last) for part in (gate, up)):
        return None
    end = up.args[3]
    placed = gate.args[2:4] == (0, half) and up.args[2] == half and isinstance(end, int) and end >= size
    return whole if placed else None

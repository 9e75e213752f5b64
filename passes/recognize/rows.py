"""Tensors that hold the same rows.

Each function proves that the last dimension and the order of the rows are kept; in doubt a tensor is another one.
Nothing is changed.
"""

from __future__ import annotations

import torch
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.passes.graph.calls import SIZE_OPS
from etcuda.passes.graph.meta import tensor_of

aten = torch.ops.aten

_RESHAPES = frozenset(
    {
        aten.alias.default,
        aten.clone.default,
        aten.reshape.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
        aten.view.default,
    }
)


def same_rows(node: Node) -> Node:
    """The tensor whose rows ``node`` has, in the same order, in another shape at most."""
    while node.op == "call_function" and node.target in _RESHAPES:
        source = node.args[0]
        assert isinstance(source, Node)
        before, after = tensor_of(source), tensor_of(node)
        if not before.dim() or not after.dim() or not statically_known_true(before.shape[-1] == after.shape[-1]):
            break
        node = source
    return node


def other_readers(y: Node, nodes: list[Node]) -> list[Node]:
    """What reads ``y`` or a view of its rows beside ``nodes``, sizes left out."""
    found, pending = [], [y]
    while pending:
        for user in pending.pop().users:
            if user in nodes or user.target in SIZE_OPS:
                continue
            if same_rows(user) is y:
                pending.append(user)
            else:
                found.append(user)
    return found

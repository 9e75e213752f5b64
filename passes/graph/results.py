"""One call takes over the results of others that computed the same."""

from __future__ import annotations

import operator

import torch
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.passes.graph.calls import SIZE_OPS, erase_unused, result_of
from etcuda.passes.graph.meta import tensor_of

aten = torch.ops.aten


def take_over(fused: Node, first: int, calls: list[Node], y: Node) -> None:
    """Puts the results of ``fused`` into the place of those of other calls, and erases the calls.

    Args:
        fused: a call with several results, in front of everything that reads those of ``calls``.
        first: index of its result that stands for result 0 of each call; those behind it for the next ones.
        calls: each reads ``y``, or a view of it, as its first argument. Views that nothing else reads go too.
        y: stays.
    """
    for call in calls:
        for result in list(call.users):
            index = result.args[1]
            assert result.target is operator.getitem
            assert isinstance(index, int)
            result.replace_all_uses_with(result_of(fused, first + index))
            result.graph.erase_node(result)
        view = call.args[0]
        call.graph.erase_node(call)
        erase_unused(view, y)


def replace_by_result(fused: Node, index: int, node: Node, alike: Node) -> bool:
    """Puts a result of ``fused`` into the place of ``node`` where it is read; returns whether it is.

    Readers of sizes alone get those of ``alike`` where they are the same: for them nothing need be computed.
    """
    read_sizes_of(node, alike)
    if not node.users:
        return False
    node.replace_all_uses_with(result_of(fused, index), delete_user_cb=lambda user: user is not fused)
    return True


def read_sizes_of(node: Node, other: Node) -> None:
    """Readers of sizes of ``node`` read those of ``other`` instead, where they are the same."""
    for user in list(node.users):
        if user.target in SIZE_OPS and _same_size(user, node, other):
            user.replace_input_with(node, other)


def _same_size(reader: Node, node: Node, other: Node) -> bool:
    """Whether a reader of sizes gets from ``other`` what it gets from ``node``."""
    sizes, others = tensor_of(node).shape, tensor_of(other).shape
    dims = reader.args[1:] if reader.target is aten.sym_size.int else range(len(sizes))
    return len(sizes) == len(others) and all(statically_known_true(sizes[dim] == others[dim]) for dim in dims)  # type: ignore[index]

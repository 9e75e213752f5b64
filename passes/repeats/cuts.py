"""Where to cut a repeated run of calls: where no fusion is lost, and where fewest values are alive.

Inductor fuses the calls that it generates kernels for. A kernel that a library or a user gives ends a fusion, so the
rank of a call is how many of those its inputs have gone through, at most: calls of one rank may be one kernel. Nothing
is changed.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import torch
from torch.fx import Node

from etcuda.passes.graph.calls import returns_alias
from etcuda.torch_private import Lowering, lowering_of

aten = torch.ops.aten

# Batched products of one row, as attention has them, are generated in places.
_LIBRARY_CALLS = frozenset({aten.mm.default, aten.addmm.default, aten.linear.default, aten.convolution.default})


def best_offsets(calls: Sequence[Node], place: Mapping[Node, int], start: int, period: int, length: int) -> list[int]:
    """Offsets into a period, the best to cut at first.

    Args:
        calls: all calls of the graph.
        place: their places.
        start: of the first period.
        period: calls in a period.
        length: of all periods together, at least two.
    """
    rank = _ranks(calls, place)
    # In the middle, where values from before the first period do not look like those of a period.
    middle = start + max(0, length // period // 2 - 1) * period
    alive: dict[int, set[Node]] = {offset: set() for offset in range(period)}
    lost = dict.fromkeys(range(period), 0)
    for node in calls[: middle + period]:
        users = [user for user in node.users if user in place]
        last = max((place[user] for user in users), default=-1)
        for offset in range(period):
            cut = middle + offset
            if place[node] < cut <= last:
                alive[offset].add(node)
                if not is_library_call(origin_of(node)):
                    lost[offset] += any(rank[user] == rank[node] for user in users if place[user] >= cut)
    whole = {offset: (length - offset) // period for offset in range(period)}
    return sorted(range(period), key=lambda offset: (lost[offset], len(alive[offset]), -whole[offset], offset))


def _ranks(calls: Sequence[Node], place: Mapping[Node, int]) -> dict[Node, int]:
    rank: dict[Node, int] = {}
    for node in calls:
        before = [rank[each] + is_library_call(origin_of(each)) for each in node.all_input_nodes if each in place]
        # A view is of the rank of what it views, so that the end of a fusion is counted once.
        viewed = _viewed(node)
        rank[node] = max(before, default=0) if viewed is None else rank.get(viewed, 0)
    return rank


def _viewed(node: Node) -> Node | None:
    is_view = node.target is operator.getitem or returns_alias(node.target) or node.target is aten.reshape.default
    return node.args[0] if is_view and node.args and isinstance(node.args[0], Node) else None


def may_be_one_kernel(node: Node, user: Node, calls: Sequence[Node]) -> bool:
    """Whether a call and one that reads its result may be one kernel.

    They are not if the call is a library's, or if ``user`` also waits for a library's call that waits for ``node``.

    Args:
        node: a call.
        user: reads it.
        calls: those of the graph from ``node`` to ``user``, in order.
    """
    if is_library_call(origin_of(node)):
        return False
    # For what depends on the call: whether a library's call lies in between.
    behind = {node: False}
    for each in calls:
        passed = [behind[source] for source in each.all_input_nodes if source in behind]
        if each is user:
            return not any(passed)
        if passed and each not in behind:
            behind[each] = any(passed) or is_library_call(each)
    return True


def origin_of(node: Node) -> Node:
    """The value that a node is a view of, or the node itself."""
    while (viewed := _viewed(node)) is not None:
        node = viewed
    return node


def is_library_call(node: Node) -> bool:
    """Whether Inductor fuses nothing with a node: its kernel is a library's or ours, or it is an input."""
    op = node.target
    if isinstance(op, torch._ops.HigherOrderOperator):
        return True
    if node.op != "call_function" or not isinstance(op, torch._ops.OpOverload):
        return node.op == "placeholder"
    return op in _LIBRARY_CALLS or op.namespace == "etcuda" or lowering_of(op) == Lowering.FALLBACK

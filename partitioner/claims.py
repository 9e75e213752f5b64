"""Which nodes of one graph are claimed, in which partitions, and why the others are not."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Set

import torch
from torch.fx import GraphModule, Node

from etcuda.options import BackendConfig
from etcuda.partitioner.levels import partitions
from etcuda.partitioner.node_view import Refusal
from etcuda.partitioner.ownership import TAG
from etcuda.partitioner.support import branches, is_symbolic_scalar, refuse
from etcuda.partitioner.value_checks import is_value_check
from etcuda.passes.graph.edge_ops import ASSERTIONS, VIEW_OF_COPY, underlying
from etcuda.passes.graph.symbols import free_symbols, size_symbols
from etcuda.torch_private import expression

aten = torch.ops.aten

# No arithmetic: a partition of these alone would cost a call and gain nothing.
_NO_COMPUTE = frozenset(
    {
        *VIEW_OF_COPY,
        *VIEW_OF_COPY.values(),
        *ASSERTIONS,
        aten.view.default,
        aten._to_copy.default,
        aten.arange.start_step,
        aten.clone.default,
        aten.empty.memory_format,
        aten.full.default,
        aten.scalar_tensor.default,
    }
)


@dataclasses.dataclass(frozen=True)
class Claims:
    """Partitions of one graph and of the control flow in it that is not claimed whole.

    Attributes:
        partitions: nodes of each, in an order in which they can run.
        refusals: every call that is left, with its reason.
    """

    partitions: list[list[Node]]
    refusals: dict[Node, Refusal]


def claim(module: GraphModule, config: BackendConfig, fixed: Set[Node] = frozenset()) -> Claims:
    """Decides over every call of a graph, and of the branches of control flow that is not claimed whole.

    Args:
        module: an Edge or ATen graph with metadata.
        config: target and options.
        fixed: placeholders of weights and constants.
    """
    calls = [node for node in module.graph.nodes if node.op == "call_function" and not _is_no_candidate(node)]
    refusals: dict[Node, Refusal] = {}
    for node in calls:
        refusal = _tagged(node) or refuse(node, config)
        if refusal is not None:
            refusals[node] = refusal
    while True:
        claimed = {node for node in calls if node not in refusals}
        proposed = partitions(module.graph, claimed, is_symbolic_scalar, fixed)
        groups = [useful for group in proposed if (useful := _without_trivial(group))]
        unbound = {node: refusal for group in groups for node, refusal in _unbound_numbers(group).items()}
        if not unbound:
            break
        refusals |= unbound
    inside = {node for group in groups for node in group}
    for node in calls:
        if node not in inside and node not in refusals and underlying(node.target) not in ASSERTIONS:
            refusals[node] = _left_on_host(node)
    for node in calls:
        if node not in inside and isinstance(node.target, torch._ops.HigherOrderOperator):
            for branch in branches(node):
                inner = claim(branch, config)
                groups += inner.partitions
                refusals |= inner.refusals
    return Claims(groups, refusals)


def _is_no_candidate(node: Node) -> bool:
    """Whether the node is no operator of the model: a delegate's, or a check that the runtime makes."""
    return _is_delegate(node) or is_value_check(node)


def _is_delegate(node: Node) -> bool:
    """Whether the node is a call of a delegate, or one of its results."""
    if node.target is operator.getitem and isinstance(node.args[0], Node):
        node = node.args[0]
    return getattr(node.target, "__name__", "") == "executorch_call_delegate"


def _tagged(node: Node) -> Refusal | None:
    tag = node.meta.get(TAG)
    return None if tag is None else Refusal(f"another partitioner has claimed it as {tag!r}", {"tag": tag})


def _left_on_host(node: Node) -> Refusal:
    if is_symbolic_scalar(node):
        return Refusal("a number computed from shapes that is used in several places; the host computes it")
    return Refusal("no arithmetic is connected to it; a call of the delegate would gain nothing")


def _unbound_numbers(group: list[Node]) -> dict[Node, Refusal]:
    """Nodes that take a number from outside which does not follow from the sizes of the partition's tensor inputs."""
    members = set(group)
    outside = dict.fromkeys(source for node in group for source in node.all_input_nodes if source not in members)
    known = size_symbols(outside)
    found: dict[Node, Refusal] = {}
    for node in group:
        for source in node.all_input_nodes:
            value = source.meta.get("val")
            if source in members or expression(value) is None:
                continue
            missing = sorted(str(symbol) for symbol in free_symbols(value) if symbol not in known)
            if missing:
                reason = f"it takes the number {source.name} = {expression(value)} from outside its partition, whose "
                reason += f"tensor inputs have no dimension {', '.join(missing)}"
                found[node] = Refusal(reason, {"number": str(expression(value)), "missing": missing})
    return found


def _without_trivial(group: list[Node]) -> list[Node]:
    """Drops the connected parts of a partition in which nothing is computed."""
    members = set(group)
    kept: set[Node] = set()
    seen: set[Node] = set()
    for start in group:
        if start in seen:
            continue
        part, stack = [], [start]
        seen.add(start)
        while stack:
            node = stack.pop()
            part.append(node)
            for other in (*node.all_input_nodes, *node.users):
                if other in members and other not in seen:
                    seen.add(other)
                    stack.append(other)
        if any(_computes(node) for node in part):
            kept.update(part)
    return [node for node in group if node in kept]


def _computes(node: Node) -> bool:
    if node.target is operator.getitem or is_symbolic_scalar(node):
        return False
    return underlying(node.target) not in _NO_COMPUTE

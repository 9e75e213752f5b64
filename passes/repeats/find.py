"""Parts of a delegated graph that repeat, as the layers of a model do: where the graph is cut into regions.

Repeats are found by structure: the longest run of calls that comes again right behind itself, then in what is left
before, behind and inside of it. In doubt the answer is None and the graph stays whole. Nothing is changed.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import operator
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Node

from etcuda.passes.graph.calls import returns_alias
from etcuda.passes.graph.symbols import free_symbols, size_symbols
from etcuda.passes.repeats.cuts import best_offsets
from etcuda.passes.repeats.periods import best_period
from etcuda.passes.repeats.regions import Region, describe_region, is_number, num_calls, token

log = logging.getLogger(__name__)

# A part costs seconds of its own, so a repeat must save some calls to be worth it: docs/decisions.md, 46.
MIN_SAVED_CALLS = 500
_MAX_TRIES = 6


@dataclasses.dataclass(frozen=True)
class Repeats:
    """A graph cut into regions, one behind the other; those of one structure compute the same."""

    regions: tuple[Region, ...]

    @property
    def num_structures(self) -> int:
        """How many regions are different."""
        return len({region.structure for region in self.regions})


class _Refusal(Exception):
    """Why a graph stays whole."""


def find_repeats(program: ExportedProgram, min_saved: int | None = None) -> Repeats | None:
    """Cuts the graph of a program after the passes where it repeats.

    Args:
        program: a delegated program.
        min_saved: calls that a repeat must save, those in branches too; ``None``: ``MIN_SAVED_CALLS``.

    Returns:
        ``None`` if nothing repeats that is long enough, or parts could compute something else than the whole.
    """
    try:
        return _find(program, MIN_SAVED_CALLS if min_saved is None else min_saved)
    except _Refusal as refusal:
        log.info("the graph is compiled as one: %s", refusal)
        return None


def _find(program: ExportedProgram, min_saved: int) -> Repeats | None:
    calls = _calls(program)
    ids: dict[Hashable, int] = {}
    tokens = [ids.setdefault(token(node), len(ids)) for node in calls]
    if best_period(tokens) is None:
        return None
    graph = _Graph(program, calls, tokens)
    cuts = sorted(set(graph.cuts(0, len(calls), min_saved)))
    if not cuts:
        return None
    regions = graph.regions(cuts)
    if regions is None:
        raise _Refusal("its parts could not hand over what they would have to")
    once = {region.structure: region for region in regions}.values()
    saved = sum(graph.cost) - sum(graph.cost[graph.place[node]] for region in once for node in region.nodes)
    if saved < min_saved:
        raise _Refusal(f"what repeats would save {saved} calls, {min_saved} are worth it")
    return Repeats(tuple(regions))


def _calls(program: ExportedProgram) -> list[Node]:
    """Calls with tensor results, each of several results right behind the call that has them."""
    ordered: dict[Node, None] = {}
    for node in program.graph.nodes:
        if node.op in ("placeholder", "get_attr", "output") or is_number(node):
            continue
        if node.op != "call_function":
            raise _Refusal(f"{node.name} is a {node.op}")
        ordered[node] = None
        for user in node.users:
            if user.target is operator.getitem:
                ordered[user] = None
    known = size_symbols(_inputs(program)).keys()
    for node in ordered:
        op = node.target
        if isinstance(op, torch._ops.OpOverload) and (
            op._schema.is_mutable or torch.Tag.nondeterministic_seeded in op.tags
        ):
            raise _Refusal(f"{node.name} writes to a tensor, or draws random numbers")
        value = node.meta.get("val")
        values: list[Any] = list(value) if isinstance(value, tuple | list) else [value]
        if not all(isinstance(each, torch.Tensor) for each in values):
            raise _Refusal(f"{node.name} has results that are no tensors")
        dims = [size for each in values for size in (*each.shape, *each.stride())]
        sizes = {symbol for size in dims for symbol in free_symbols(size)}
        if sizes - known:
            raise _Refusal(f"{node.name} has sizes that are no sizes of inputs: {sizes - known}")
    return list(ordered)


def _inputs(program: ExportedProgram) -> list[Node]:
    names = set(program.graph_signature.user_inputs)
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]


class _Graph:
    def __init__(self, program: ExportedProgram, calls: list[Node], tokens: Sequence[int]) -> None:
        self.calls, self.tokens = calls, tokens
        self.place = {node: index for index, node in enumerate(calls)}
        self.cost = [num_calls(node) for node in calls]
        self.carriers = size_symbols(_inputs(program))
        self.writes = _writes(program, self.place)

    def cuts(self, start: int, end: int, min_saved: int) -> Iterator[int]:
        """Where regions begin between two places, the first not included."""
        found = best_period(self.tokens[start:end])
        if found is None:
            return
        first = start + found.start
        cost = sum(self.cost[first : first + found.period])
        if (found.length // found.period - 1) * cost < min_saved:
            return
        for offset in best_offsets(self.calls, self.place, first, found.period, found.length)[:_MAX_TRIES]:
            count = (found.length - offset) // found.period
            places = [first + offset + index * found.period for index in range(count + 1)]
            regions = self.regions(places)
            if regions is None or (count - 1) * cost < min_saved:
                continue
            # Without the region before the first cut and the one behind the last.
            structures = [region.structure for region in regions[1 if places[0] else 0 :][:count]]
            if len(set(structures)) != 1:
                continue
            inside = [cut - places[0] for cut in self.cuts(places[0], places[1], min_saved)]
            for place in places:
                yield place
                if place != places[-1]:
                    yield from (place + cut for cut in inside)
            yield from self.cuts(start, places[0], min_saved)
            yield from self.cuts(places[-1], end, min_saved)
            return

    def regions(self, cuts: Sequence[int]) -> list[Region] | None:
        """The regions between cuts; ``None`` if parts cannot hand over what they would have to."""
        edges = sorted({0, *cuts, len(self.calls)})
        regions = []
        for start, end in itertools.pairwise(edges):
            region = describe_region(self.calls[start:end], self.writes, self.carriers)
            if region is None:
                return None
            regions.append(region)
        return regions if self._can_be_parts(regions) else None

    def _can_be_parts(self, regions: Sequence[Region]) -> bool:
        region_of = {node: index for index, region in enumerate(regions) for node in region.nodes}
        written_in = {state: region_of[node] for node, states in self.writes.items() for state in states}
        shared = {*self.writes, *(_root(node) for node in self.writes)}
        for index, region in enumerate(regions):
            for node in region.inputs:
                if node in written_in and written_in[node] < index:
                    return False  # a part before has written to what is to be read as it was
                if node not in region_of:
                    continue
                root = _root(node)
                # Memory that a part writes to, or that is not its own to give away.
                if root in shared or root.op == "placeholder" or not isinstance(node.meta["val"], torch.Tensor):
                    return False
        return True


def _root(node: Node) -> Node:
    """The value whose memory ``node`` may be a view of."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], Node):
        if node.target is not operator.getitem and not returns_alias(node.target):
            break
        node = node.args[0]
    return node


def _writes(program: ExportedProgram, place: Mapping[Node, int]) -> dict[Node, list[Node]]:
    """For each new value of state, the placeholders of the states.

    Raises:
        _Refusal: parts could not write it in place.
    """
    signature = program.graph_signature
    nodes = {node.name: node for node in program.graph.nodes}
    placeholder = {fqn: nodes[name] for name, fqn in signature.inputs_to_buffers.items()}
    found: dict[Node, list[Node]] = {}
    outputs: Any = program.graph.output_node().args[0]
    for spec, value in zip(signature.output_specs, outputs, strict=True):
        if spec.kind == OutputKind.USER_OUTPUT:
            continue
        state = placeholder.get(str(spec.target))
        if spec.kind != OutputKind.BUFFER_MUTATION or value not in place or state is None or value in found:
            raise _Refusal(f"{spec.target} is written to in a way that parts do not know")
        found[value] = [state]
    return found

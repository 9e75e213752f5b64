"""A run of repetitions in a graph, and what each of them reads: the same, but for weights and states of its own."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node

from etcuda.passes.repeats.periods import best_period
from etcuda.passes.repeats.regions import is_number, token

# Any place in a repetition is as good as another, but for what stands in front of the first one and looks like its end.
_MAX_OFFSETS = 16
_CONSTANT = "constant"
_PARTS = frozenset({torch.ops.export.access_subclass_inner_tensor.default})
_CONSTANTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


@dataclasses.dataclass(frozen=True)
class Run:
    """Repetitions one behind the other.

    Attributes:
        repetitions: the calls of each, in order; those at one place do the same.
        reads: for each repetition what its calls read, in order: ("own", place), ("back", place in the repetition
            before), ("constant", name), with the part of it behind the first word, ("other", node), or ("free", None)
            for numbers and branches.
        writes: for each repetition the places of new values of state, and the names of the states.
    """

    repetitions: tuple[tuple[Node, ...], ...]
    reads: tuple[tuple[tuple[str, Any], ...], ...]
    writes: tuple[tuple[tuple[int, str], ...], ...]

    def agree(self, index: int) -> bool:
        """Whether a repetition and the one behind it read and write the same, but for the names of constants."""
        here, behind = self.reads[index], self.reads[index + 1]
        is_first = index == 0  # What is handed over to the first one has no repetition that it comes from.
        for (kind, value), (other, wanted) in zip(here, behind, strict=True):
            if other == "back" and is_first and not kind.startswith(_CONSTANT):
                continue
            if kind != other or (not kind.startswith(_CONSTANT) and value != wanted):
                return False
        return [place for place, _ in self.writes[index]] == [place for place, _ in self.writes[index + 1]]

    def part(self, start: int, end: int | None = None) -> Run:
        """Some of the repetitions."""
        return Run(self.repetitions[start:end], self.reads[start:end], self.writes[start:end])

    def names(self) -> list[tuple[str, ...]]:
        """The names of the constants at each place where one is read or written, by repetition."""
        rows = [
            [*(value for kind, value in reads if kind.startswith(_CONSTANT)), *(name for _, name in writes)]
            for reads, writes in zip(self.reads, self.writes, strict=True)
        ]
        return list(dict.fromkeys(zip(*rows, strict=True)))


def constant_names(program: ExportedProgram) -> dict[str, str]:
    """Fully qualified names of weights and states by the names of their placeholders."""
    specs = program.graph_signature.input_specs
    return {spec.arg.name: spec.target for spec in specs if spec.kind in _CONSTANTS and spec.target is not None}


def mutated_by(program: ExportedProgram) -> dict[Node, list[str]]:
    """For each new value of state: the names of the states that it is written to."""
    found: dict[Node, list[str]] = {}
    outputs: Any = program.graph.output_node().args[0]
    for spec, value in zip(program.graph_signature.output_specs, outputs, strict=True):
        if spec.kind == OutputKind.BUFFER_MUTATION and spec.target is not None:
            found.setdefault(value, []).append(spec.target)
    return found


def part_of_constant(node: Node) -> tuple[Node, str]:
    """The value that a node is a tensor of, as a weight of a subclass has several, and which."""
    path = ""
    while node.op == "call_function" and node.target in _PARTS:
        node, path = node.args[0], f".{node.args[1]}{path}"  # type: ignore[assignment]
    return node, path


def readers(node: Node) -> list[Node]:
    """What reads a constant, or one of the tensors that it is made of."""
    found = []
    for user in node.users:
        found += readers(user) if user.op == "call_function" and user.target in _PARTS else [user]
    return found


def tensor_calls(program: ExportedProgram) -> list[Node]:
    """Calls but for those that yield numbers, or nothing as assertions do, in the order of the graph."""
    calls = [node for node in program.graph.nodes if node.op == "call_function" and not is_number(node)]
    calls = [node for node in calls if node.target not in _PARTS]
    return [node for node in calls if node.meta.get("val") is not None]


def is_assertion(node: Node) -> bool:
    """Whether a call has no result, and so only checks what it reads."""
    return node.op == "call_function" and node.meta.get("val") is None and not node.users


def read_by(node: Node) -> list[Node]:
    """The nodes among a call's arguments, each as often as it occurs."""
    found: list[Node] = []
    torch.fx.map_arg((node.args, node.kwargs), found.append)
    return found


def runs(program: ExportedProgram) -> Iterator[Run]:
    """The longest run of repetitions of a graph, cut at one place after another; none if nothing repeats."""
    calls = tensor_calls(program)
    ids: dict[Hashable, int] = {}
    found = best_period([ids.setdefault(token(node), len(ids)) for node in calls])
    if found is None:
        return
    constants, mutated = constant_names(program), mutated_by(program)
    for offset in range(min(found.period, _MAX_OFFSETS)):
        count = (found.length - offset) // found.period
        if count < 2:
            return
        first = found.start + offset
        edges = [first + index * found.period for index in range(count + 1)]
        pieces = [tuple(calls[start:end]) for start, end in itertools.pairwise(edges)]
        yield _describe(pieces, constants, mutated)


def _describe(pieces: Sequence[tuple[Node, ...]], constants: dict[str, str], mutated: dict[Node, list[str]]) -> Run:
    where = {node: (index, place) for index, piece in enumerate(pieces) for place, node in enumerate(piece)}

    def read(index: int, node: Node) -> tuple[str, Any]:
        if node.op == "get_attr" or is_number(node):
            return ("free", None)
        source, path = part_of_constant(node)
        if source.op == "placeholder" and source.name in constants:
            return (_CONSTANT + path, constants[source.name])
        if node not in where:
            return ("other", node)
        repetition, place = where[node]
        if repetition == index:
            return ("own", place)
        return ("back", place) if repetition == index - 1 else ("other", node)

    reads = tuple(
        tuple(read(index, each) for node in piece for each in read_by(node)) for index, piece in enumerate(pieces)
    )
    writes = tuple(
        tuple((place, name) for place, node in enumerate(piece) for name in mutated.get(node, ())) for piece in pieces
    )
    return Run(tuple(pieces), reads, writes)

"""Which calls view or write to which buffers, in the graph that ``torch.export.export`` writes."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.passes.base import graph_modules
from etcuda.passes.graph.calls import insert_call
from etcuda.passes.graph.copy_graph import copy_graph

aten = torch.ops.aten


def buffer_placeholders(program: ExportedProgram) -> dict[Node, str]:
    """Placeholders of buffers, and the buffers' names."""
    named = program.graph_signature.inputs_to_buffers
    return {node: named[node.name] for node in program.graph.nodes if node.op == "placeholder" and node.name in named}


def aliases_of_buffers(program: ExportedProgram) -> dict[Node, Node]:
    """Nodes that are, or view, a buffer: the placeholder of that buffer."""
    found: dict[Node, Node] = {node: node for node in buffer_placeholders(program)}
    for node in program.graph.nodes:
        for source, is_written in viewed(node):
            if source in found and (is_written or node not in found):
                found[node] = found[source]
    return found


def viewed(node: Node) -> Iterator[tuple[Node, bool]]:
    """Arguments whose memory the result has, and whether the call writes to it."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        if getattr(node.target, "__name__", "") == "getitem" and isinstance(node.args[0], Node):
            yield node.args[0], False
        return
    schema = node.target._schema
    for index, argument in enumerate(schema.arguments):
        given = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
        if argument.alias_info is None:
            continue
        for each in given if isinstance(given, list | tuple) else (given,):
            if isinstance(each, Node):
                yield each, argument.alias_info.is_write


def written_buffers(program: ExportedProgram) -> set[Node]:
    """Placeholders of buffers that a call writes to."""
    aliases = aliases_of_buffers(program)
    return {
        aliases[source]
        for node in program.graph.nodes
        for source, is_written in viewed(node)
        if is_written and source in aliases
    }


def mutated_buffers(program: ExportedProgram) -> set[str]:
    """Names of the buffers that a program writes to, functional or not."""
    buffers = buffer_placeholders(program)
    return {*program.graph_signature.buffers_to_mutate.values(), *(buffers[node] for node in written_buffers(program))}


def base_name(node: Node) -> str:
    """Name of a call's operator, the same for the one that writes to its argument; empty if it is no operator."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    return str(node.target._schema.name.split("::")[-1]).rstrip("_")


def numel_of(node: Node) -> int | torch.SymInt | None:
    """Number of elements of a node's tensor; ``None`` if it has none."""
    value = node.meta.get("val")
    return value.numel() if isinstance(value, torch.Tensor) else None


def match_overwrites(program: ExportedProgram) -> None:
    """Gives what overwrites a tensor the tensor's dtype and shape.

    PyTorch's functionalisation takes the source of ``copy_`` for the new value as it is: later readers would see its
    dtype and its shape.
    """
    for node in program.graph.nodes:
        if node.target is not aten.copy_.default:
            continue
        target, source = node.args[:2]
        want, got = target.meta["val"], source.meta["val"]
        if got.dtype != want.dtype:
            source = insert_call(node, aten._to_copy.default, (source,), dtype=want.dtype)
        if not same_shape(got, want):
            source = insert_call(node, aten.expand.default, (source, _sizes(node, target)))
        node.args = (target, source, *node.args[2:])
    program.graph_module.recompile()


class FunctionalProgram(ExportedProgram):
    """A program in which no call writes to its arguments: making it functional once more would change nothing.

    Attributes:
        stays: operators that were to be decomposed and are still called, as ``sym_size`` is.
    """

    stays: frozenset[object]

    @classmethod
    def of(cls, program: ExportedProgram, table: Container[object]) -> FunctionalProgram:
        """The same program, graph and tensors shared, of this class.

        Args:
            program: what was made functional.
            table: the decompositions that it was made with.
        """
        made = cls.__new__(cls)
        made.__dict__.update(program.__dict__)
        made.stays = frozenset(op for op in called(made) if op in table)
        return made


def called(program: ExportedProgram) -> set[object]:
    """What a program calls, in control flow too."""
    calls = (node for module in graph_modules(program) for node in module.graph.nodes if node.op == "call_function")
    return {node.target for node in calls}


def functional_copy(
    program: ExportedProgram, table: Mapping[Any, Callable[..., Any]] | None = None
) -> FunctionalProgram:
    """A copy in which no call writes to its arguments; without gradients.

    Args:
        program: not changed.
        table: decompositions, by operator; none by default.
    """
    made = copy_graph(program)
    match_overwrites(made)
    table = dict(table or {})
    with torch.no_grad():
        return FunctionalProgram.of(made.run_decompositions(table), table)


def same_shape(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two shapes are written alike; comparing sizes as numbers would make a guard."""
    return [str(size) for size in a.shape] == [str(size) for size in b.shape]


def _sizes(before: Node, tensor: Node) -> list[int | Node]:
    sizes: list[int | Node] = []
    for dim, size in enumerate(tensor.meta["val"].shape):
        sizes.append(size if isinstance(size, int) else insert_call(before, aten.sym_size.int, (tensor, dim)))
    return sizes

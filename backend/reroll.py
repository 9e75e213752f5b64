"""A graph that repeats, compiled in parts: one program for each structure, and the steps that call them.

Every constant and every state is an argument of a part, so that one part serves all repetitions. A part writes to its
state in place. See docs/blob.md for what the runtime does with the steps.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import Graph, GraphModule, Node

import etcuda.kernels.common.part_edge  # noqa: F401  defines the operator
from etcuda.passes.graph.calls import insert_call
from etcuda.passes.graph.meta import compute_meta
from etcuda.passes.graph.symbols import free_symbols, size_symbols
from etcuda.passes.repeats.cuts import is_library_call, may_be_one_kernel, origin_of
from etcuda.passes.repeats.find import find_repeats
from etcuda.passes.repeats.regions import Region, is_number
from etcuda.torch_private import build_expression, expression, fake_mode_of, part_of_program, storage_key

# Nothing reads the value.
DROPPED = 2**32 - 1


log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Step:
    """A call of a part: the values that it reads, and those that it makes."""

    part: int
    inputs: tuple[Node, ...]
    outputs: tuple[Node | None, ...]


@dataclasses.dataclass(frozen=True)
class Parts:
    """A program in parts.

    Attributes:
        programs: one for each structure, without constants of their own.
        steps: their calls, in order.
        results: the values that the whole program returns.
    """

    programs: tuple[ExportedProgram, ...]
    steps: tuple[Step, ...]
    results: tuple[Node, ...]

    def numbered(self, first: dict[Node, int], count: int) -> tuple[list[tuple[int, list[int], list[int]]], list[int]]:
        """The steps and the results in numbers of values.

        Args:
            first: numbers of the inputs and the constants.
            count: of inputs and constants; what the steps make has the numbers behind.
        """
        number = dict(first)
        steps = []
        for step in self.steps:
            inputs = [number[node] for node in step.inputs]
            outputs = []
            for node in step.outputs:
                outputs.append(DROPPED if node is None else count)
                if node is not None:
                    number[node] = count
                    count += 1
            steps.append((step.part, inputs, outputs))
        return steps, [number[node] for node in self.results]


def split_repeats(program: ExportedProgram) -> Parts | None:
    """The parts of a program after the passes; ``None`` if it is to be compiled as one."""
    repeats = find_repeats(program)
    if repeats is None:
        return None
    if _state_is_shared(program):
        log.info("the graph is compiled as one: two of its states share memory")
        return None
    regions = repeats.regions
    returned = [value for spec, value in _outputs(program) if spec.kind == OutputKind.USER_OUTPUT]
    read = {node for region in regions for node in region.inputs} | set(returned)
    structures: dict[Hashable, int] = {}
    part_of = [structures.setdefault(region.structure, len(structures)) for region in regions]
    # A part gives what any of its calls has to give.
    given: list[set[int]] = [set() for _ in structures]
    for part, region in zip(part_of, regions, strict=True):
        given[part] |= {index for index, node in enumerate(region.nodes) if node in read}
    programs = []
    for part in range(len(structures)):
        region = regions[part_of.index(part)]
        programs.append(_part(program, region, sorted(given[part])))
    steps = []
    for part, region in zip(part_of, regions, strict=True):
        outputs = [region.nodes[index] for index in sorted(given[part])]
        steps.append(Step(part, region.inputs, tuple(node if node in read else None for node in outputs)))
    return Parts(tuple(programs), tuple(steps), tuple(returned))


def mark_edges(program: ExportedProgram) -> int:
    """Keeps the values that would go from one part to another as parts do; for a program that stays whole.

    A graph's outputs are written to memory where they are made, which may end a chain of calls that read one another.
    Before: ``y = f(x); h(y); z = g(y)``, where ``g`` is of another part.
    After: ``y = part_edge(f(x), False); h(y); e = part_edge(y, True); z = g(e)``, or ``z = g(y)`` where no kernel could
    be of both parts.

    Returns:
        How many values there are.
    """
    repeats = find_repeats(program)
    if repeats is None or _state_is_shared(program):
        return 0
    region_of = {node: index for index, region in enumerate(repeats.regions) for node in region.nodes}
    order = {node: index for index, node in enumerate(program.graph.nodes)}
    calls = [node for region in repeats.regions for node in region.nodes]
    place = {node: index for index, node in enumerate(calls)}
    marked = 0
    for region in repeats.regions[:-1]:
        behind = max(region.nodes, key=order.__getitem__).next
        for node in region.nodes:
            later = [user for user in node.users if region_of.get(user, region_of[node]) != region_of[node]]
            # What a library's call returns is in memory anyway.
            if not later or is_library_call(origin_of(node)):
                continue
            fusible = [user for user in later if may_be_one_kernel(node, user, calls[place[node] :])]
            made = insert_call(node.next, torch.ops.etcuda.part_edge.default, (node, False))
            # What is returned has its name in the signature.
            for user in [user for user in node.users if user is not made and user.op != "output"]:
                user.replace_input_with(node, made)
            edge = insert_call(behind, torch.ops.etcuda.part_edge.default, (made, True)) if fusible else made
            for user in later:
                user.replace_input_with(made, edge)
            marked += 1
    program.graph_module.recompile()
    return marked


def _outputs(program: ExportedProgram) -> list[tuple[OutputSpec, Node]]:
    values: Any = program.graph.output_node().args[0]
    return list(zip(program.graph_signature.output_specs, values, strict=True))


def _state_is_shared(program: ExportedProgram) -> bool:
    """Whether state that the program writes to lies in memory that another of its constants views too."""
    signature = program.graph_signature
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    named |= signature.inputs_to_lifted_tensor_constants
    tensors: dict[str, Any] = {fqn: program.state_dict.get(fqn, program.constants.get(fqn)) for fqn in named.values()}
    keys = [storage_key(tensor) for tensor in tensors.values()]
    return any(keys.count(storage_key(tensors[fqn])) > 1 for fqn in signature.buffers_to_mutate.values())


def _part(program: ExportedProgram, region: Region, given: Sequence[int]) -> ExportedProgram:
    """One region as a program that takes every tensor from outside and returns the results at the places ``given``."""
    owner = program.graph_module
    graph = Graph()
    copies: dict[Node, Node] = {}
    mode: Any = fake_mode_of([node.meta["val"] for node in (*region.inputs, *region.nodes)])
    for index, node in enumerate(region.inputs):
        copies[node] = graph.placeholder(f"value_{index}")
        with mode:
            # Memory of its own, whatever it is a view of elsewhere.
            value = node.meta["val"]
            fresh = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
        copies[node].meta["val"] = fresh
    sizes = _Sizes(graph, size_symbols(copies.values()))
    modules: dict[str, torch.nn.Module] = {}

    def copied(node: Node) -> Any:
        if node in copies:
            return copies[node]
        if node.op == "get_attr":
            # Names that do not depend on what stands before the region, so that the compile cache knows it again.
            name = f"graph_{len(modules)}"
            modules[name] = owner.get_submodule(str(node.target))
            copies[node] = graph.get_attr(name)
            return copies[node]
        return sizes.number(node)

    for node in region.nodes:
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), copied)
        target: Any = node.target
        made = graph.call_function(target, args, kwargs)
        # Numbers of where it came from would hide from the compile cache what it knows.
        made.meta = {"val": node.meta["val"]}
        copies[node] = made
    writes = [(copies[region.nodes[place]].name, copies[region.inputs[state]].name) for state, place in region.writes]
    values = [copies[region.nodes[index]] for index in given]
    graph.output((*(copies[region.nodes[place]] for _, place in region.writes), *values))
    graph.lint()
    inputs = [
        InputSpec(InputKind.USER_INPUT, TensorArgument(name=copies[node].name), target=None) for node in region.inputs
    ]
    outputs = [
        OutputSpec(OutputKind.USER_INPUT_MUTATION, TensorArgument(name=new), target=state) for new, state in writes
    ]
    outputs += [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name=node.name), target=None) for node in values]
    module = GraphModule(modules, graph)
    return part_of_program(program, module, ExportGraphSignature(inputs, outputs))


class _Sizes:
    """Computes numbers in a part from the sizes of its inputs."""

    def __init__(self, graph: Graph, known: dict[Any, tuple[Node, int]]) -> None:
        self._graph, self._known = graph, known
        self._symbols: dict[Any, Node] = {}
        self._made: dict[Any, Any] = {}

    def number(self, node: Node) -> Any:
        """A node of the part, or a plain number, with the value of a number of the whole graph."""
        if not is_number(node):
            raise ValueError(f"{node.name} is neither an input of the region nor a call in it")
        value = node.meta["val"]
        key = (type(value), expression(value))
        if key not in self._made:
            self._made[key] = self._compute(value)
        return self._made[key]

    def _compute(self, value: Any) -> Any:
        symbols = free_symbols(value)
        if not symbols:
            found: Any = expression(value)
            return found if isinstance(found, bool | int | float) else type(value)(found)
        for symbol in symbols - self._symbols.keys():
            tensor, dim = self._known[symbol]
            self._symbols[symbol] = self._graph.call_function(torch.ops.aten.sym_size.int, (tensor, dim))
            compute_meta(self._symbols[symbol])
        before = set(self._graph.nodes)
        result = build_expression(expression(value), {symbol: self._symbols[symbol] for symbol in symbols})
        for made in self._graph.nodes:
            if made not in before:
                compute_meta(made)
        return result

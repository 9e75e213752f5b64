"""Puts repetitions that ``fold`` took out of a program back into what has become of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import InputSpec, OutputKind, OutputSpec, TensorArgument
from torch.fx import Node

from etcuda.errors import FoldError
from etcuda.passes.graph.copy_graph import copy_graph
from etcuda.passes.repeats.fold import Folded
from etcuda.passes.repeats.regions import is_number
from etcuda.passes.repeats.run import Run, constant_names, is_assertion, runs
from etcuda.torch_private import fake_mode_of


@dataclasses.dataclass(frozen=True)
class _Place:
    """A repetition behind which the others go.

    Attributes:
        run: has it.
        index: of the repetition in it.
        constants: for each of its constants the slot, and the repetition that it belongs to.
        made: constants that a stage has made, as of numbers, for each repetition one of the same value.
    """

    run: Run
    index: int
    constants: dict[str, tuple[int, int]]
    made: tuple[str, ...]


def unfold(program: ExportedProgram, folded: Folded) -> ExportedProgram:
    """The program with all repetitions.

    Args:
        program: what stages have made of the program that ``fold`` left; not changed.
        folded: what ``fold`` took out.

    Raises:
        FoldError: the repetitions that are left do not look alike any more.
    """
    made = copy_graph(program)
    place = _find_place(made, folded)
    if not isinstance(place, _Place):
        # Stages may have put calls in another order, such as those in front that wait for nothing.
        _order_by_use(made)
        place = _find_place(made, folded)
    if isinstance(place, _Place):
        _put_back(made, place, folded)
        return made
    raise FoldError(
        f"expected the {folded.first} first repetitions and the last one of {folded.first + folded.count + 1} to be "
        f"lowered alike, got: {place}. Lower with CudaPartitioner(..., folds=False), which takes longer."
    )


def _find_place(program: ExportedProgram, folded: Folded) -> _Place | str:
    found: _Place | str = "nothing repeats"
    for run in runs(program):
        for index in range(len(run.repetitions) - 1, 0, -1):
            found = _place(program, run, index, folded)
            if isinstance(found, _Place):
                return found
    return found


def _order_by_use(program: ExportedProgram) -> None:
    """Puts each call right in front of the first one that needs it, so that equal calls come in an equal order."""
    graph = program.graph
    output = graph.output_node()
    seen: set[Node] = set()
    order: list[Node] = []
    ends = [node for node in graph.nodes if node.op == "call_function" and (output in node.users or not node.users)]
    for end in ends:
        waiting = [end]
        while waiting:
            node = waiting[-1]
            missing = [each for each in node.all_input_nodes if each.op != "placeholder" and each not in seen]
            if missing:
                waiting.append(missing[0])
                continue
            waiting.pop()
            if node not in seen:
                seen.add(node)
                order.append(node)
    for node in order:
        output.prepend(node)


def _place(program: ExportedProgram, run: Run, index: int, folded: Folded) -> _Place | str:
    """What the repetition ``index`` is, if copies of it can go behind it; or why not."""
    if not run.agree(index - 1):
        return "repetitions read or write different things"
    belongs = {name: (slot, place) for slot, names in enumerate(folded.slots) for place, name in enumerate(names)}
    last = folded.first + folded.count

    def kept(name: str) -> tuple[int, int] | None:
        # The repetitions that are left are numbered one behind the other.
        if name not in belongs:
            return None
        slot, place = belongs[name]
        return slot, place if place < last else place - folded.count

    constants: dict[str, tuple[int, int]] = {}
    made: list[str] = []
    for before, name in run.part(index - 1, index + 1).names():
        here = kept(name)
        if here is None:
            if before != name and not _equal(program, before, name):
                return f"{name} is a weight of which nothing is known"
            made += [name] if before != name else []
            continue
        if kept(before) != (here[0], here[1] - 1) or here[1] not in (folded.first - 1, folded.first):
            return f"{name} is read where another repetition's weight was expected"
        constants[name] = here
    slots = {slot for slot, _ in constants.values()}
    if slots != set(range(len(folded.slots))):
        return "some weights are not read where the others are"
    here_of = dict(constants.values())
    inside = set(run.repetitions[index])
    order = {node: place for place, node in enumerate(program.graph.nodes)}
    first, end = order[run.repetitions[index][0]], order[run.repetitions[index][-1]]
    names = constant_names(program)
    for node in program.graph.nodes:
        found = kept(names[node.name]) if node.op == "placeholder" and node.name in names else None
        for user in node.users if found is not None else ():
            if user.op == "output" or user in inside:
                continue
            slot, place = found  # type: ignore[misc]
            if not ((order[user] < first and place < here_of[slot]) or (order[user] > end and place > here_of[slot])):
                return f"{names[node.name]} is read by {user.name}, where another repetition's weight was expected"
    return _Place(run, index, constants, tuple(made))


def _equal(program: ExportedProgram, a: str, b: str) -> bool:
    """Whether two constants that a stage has made are the same."""
    x, y = (program.state_dict.get(name, program.constants.get(name)) for name in (a, b))
    if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
        return False
    return x.dtype == y.dtype and x.shape == y.shape and x.numel() <= 4096 and torch.equal(x, y)


def _put_back(program: ExportedProgram, place: _Place, folded: Folded) -> None:
    graph = program.graph
    template, before = place.run.repetitions[place.index], place.run.repetitions[place.index - 1]
    nodes = _with_inputs(program, place, folded)
    clones = {name: _clones(program, name, nodes[name], folded.count) for name in place.made}
    of_names = {node: name for name, node in nodes.items()}

    def constant(node: Node, step: int) -> Node:
        """What a copy reads where the template, as it was, read ``node``."""
        if of_names.get(node) in clones:
            return clones[of_names[node]][step]
        if of_names.get(node) not in place.constants:
            return node
        slot, index = place.constants[of_names[node]]
        return nodes[folded.slots[slot][index + step]]

    readers = [
        (node, user) for node in template for user in node.users if user not in set(template) and user.op != "output"
    ]
    newest = dict(zip(template, template, strict=True))
    handed = dict(zip(before, template, strict=True))
    copies = [newest]
    at = template[-1]
    for step in range(1, folded.count + 1):
        made: dict[Node, Node] = {}

        def copied(node: Node, step: int = step, made: dict[Node, Node] = made, old: dict[Node, Node] = newest) -> Node:
            if node in copies[0]:
                return made[node]
            return old[handed[node]] if node in handed else constant(node, step)

        for node in template:
            with graph.inserting_after(at):
                at = made[node] = graph.node_copy(node, copied)
        copies.append(made)
        newest = made
    for node in template:
        node.args, node.kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda each: constant(each, 0))
    for node, user in readers:
        if not is_number(user) and not is_assertion(user):
            user.replace_input_with(node, newest[node])
    _add_writes(program, place, folded, copies)
    graph.lint()
    program.graph_module.recompile()


def _with_inputs(program: ExportedProgram, place: _Place, folded: Folded) -> dict[str, Node]:
    """Adds the constants that were taken out; returns the placeholders of all, by fully qualified name."""
    signature = program.graph_signature
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    nodes = {fqn: placeholders[name] for name, fqn in constant_names(program).items()}
    wanted: dict[str, str] = {}
    for name, (slot, index) in place.constants.items():
        wanted |= {
            folded.slots[slot][index + step]: name
            for step in range(folded.count + 1)
            if folded.slots[slot][index + step] not in nodes
        }
    specs = {spec.target: spec for spec in signature.input_specs if spec.target is not None}
    first = next(iter(program.graph.nodes))
    previous: Node | None = None
    order = [spec.arg.name for spec in signature.input_specs]
    new: dict[str, InputSpec] = {}
    for whole in folded.inputs:
        name = str(whole.target)
        if name in wanted:
            like = nodes[wanted[name]]
            table: Any = program.state_dict if wanted[name] in program.state_dict else program.constants
            table[name] = _like(table[wanted[name]], folded.tensors[name])
            graph = program.graph
            with graph.inserting_before(first) if previous is None else graph.inserting_after(previous):
                node = program.graph.placeholder(whole.arg.name)
            node.target = node.name
            node.meta = {**like.meta, "val": _own(like)}
            kind = specs[wanted[name]]
            new[node.name] = dataclasses.replace(kind, arg=TensorArgument(name=node.name), target=name)
            order.insert(0 if previous is None else order.index(previous.name) + 1, node.name)
            nodes[name] = node
        previous = nodes.get(name, previous)
    old = {spec.arg.name: spec for spec in signature.input_specs}
    signature.input_specs = [old.get(name) or new[name] for name in order]
    return nodes


def _like(kept: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A parameter if the other one is."""
    if isinstance(kept, torch.nn.Parameter) and not isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(tensor, requires_grad=False)
    return tensor


def _clones(program: ExportedProgram, name: str, node: Node, count: int) -> list[Node]:
    """The placeholder of a constant, and ``count`` more of the same value."""
    signature = program.graph_signature
    table: Any = program.state_dict if name in program.state_dict else program.constants
    index = next(i for i, spec in enumerate(signature.input_specs) if spec.arg.name == node.name)
    spec = signature.input_specs[index]
    nodes, specs = [node], [spec]
    for step in range(1, count + 1):
        fqn = f"{name}_repeated_{step}"
        table[fqn] = table[name].clone()
        with program.graph.inserting_after(nodes[-1]):
            made = program.graph.placeholder(f"{node.name}_repeated_{step}")
        made.target = made.name
        made.meta = {**node.meta, "val": _own(node)}
        nodes.append(made)
        specs.append(dataclasses.replace(spec, arg=TensorArgument(name=made.name), target=fqn))
    signature.input_specs = [*signature.input_specs[:index], *specs, *signature.input_specs[index + 1 :]]
    return nodes


def _own(node: Node) -> torch.Tensor:
    """A fake tensor like a node's, in memory of its own."""
    value = node.meta["val"]
    mode: Any = fake_mode_of([value])
    with mode:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def _add_writes(program: ExportedProgram, place: _Place, folded: Folded, copies: list[dict[Node, Node]]) -> None:
    """Writes new values to the states of all repetitions."""
    signature, output = program.graph_signature, program.graph.output_node()
    values: Any = output.args[0]
    template = copies[0]
    before = list(zip(signature.output_specs, values, strict=True))
    own = [
        (spec, value)
        for spec, value in before
        if spec.kind == OutputKind.BUFFER_MUTATION and value in template and str(spec.target) in place.constants
    ]
    repeated: list[tuple[OutputSpec, Node]] = []
    for step, made in enumerate(copies):
        for spec, value in own:
            slot, index = place.constants[str(spec.target)]
            argument = TensorArgument(name=made[value].name)
            repeated.append((OutputSpec(spec.kind, argument, folded.slots[slot][index + step]), made[value]))
    # In the order of the repetitions, where those of this one were.
    first = before.index(own[0]) if own else 0
    rest = [each for each in before if each not in own]
    made_of = [*rest[:first], *repeated, *rest[first:]]
    output.args = (type(values)(value for _, value in made_of),)
    signature.output_specs = [spec for spec, _ in made_of]

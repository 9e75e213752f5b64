"""Takes repetitions out of a program, as most of the layers of a model are, for stages that would do the same to each.

What is left has the first ones and the last one; ``unfold`` puts the others back. The stages in between may rewrite
calls, as long as they do to equal calls the same.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import InputSpec, OutputKind, TensorArgument
from torch.fx import Node

from etcuda.errors import FoldError
from etcuda.passes.graph.copy_graph import copy_graph
from etcuda.passes.repeats.regions import is_number, signature
from etcuda.passes.repeats.run import Run, constant_names, is_assertion, part_of_constant, readers, runs

log = logging.getLogger(__name__)

# Two are needed to see what a repetition hands to the next one, and a third for what reads the last one.
_FIRST, _LAST = 2, 1
_MIN_TAKEN = 2


@dataclasses.dataclass(frozen=True)
class Folded:
    """What was taken out of a program.

    Attributes:
        count: repetitions that were taken out, behind those of ``first``.
        first: repetitions in front of them that are left.
        slots: names of constants that do the same, one for each repetition of the whole program.
        inputs: of the whole program's constants, in order.
        tensors: the values of the constants that were taken out.
    """

    count: int
    first: int
    slots: tuple[tuple[str, ...], ...]
    inputs: tuple[InputSpec, ...]
    tensors: Mapping[str, Any]


def fold(program: ExportedProgram) -> tuple[ExportedProgram, Folded] | None:
    """Takes repetitions out of a program.

    Args:
        program: from ``torch.export.export``, or functional; not changed.

    Returns:
        What is left, and what was taken out; ``None`` if nothing was, for too little repeats, or the repetitions are
        not alike in all that they read and write but for constants of their own.
    """
    reason = _Refusal("nothing repeats often enough")
    for run in runs(program):
        # What stands in front of the first one may look like its end: then the first one is no repetition.
        for whole in (run, run.part(1)):
            taken = range(_FIRST, len(whole.repetitions) - _LAST)
            if len(taken) < _MIN_TAKEN:
                continue
            try:
                slots = _slots(whole)
                _check_uses(program, whole, taken, slots)
                return _take_out(program, whole, taken, slots, _numbers_in_use(program, whole, taken))
            except _Refusal as refusal:
                reason = refusal
    log.info("no repetitions are left out: %s", reason)
    return None


class _Refusal(Exception):
    """Why repetitions stay."""


def _slots(run: Run) -> tuple[tuple[str, ...], ...]:
    """Names of constants, by what they do and by repetition.

    Raises:
        _Refusal: repetitions are not alike, or share some constants.
    """
    if not all(run.agree(index) for index in range(len(run.repetitions) - 1)):
        raise _Refusal("repetitions read or write different things")
    slots = []
    for names in run.names():
        if len(set(names)) == 1:
            continue
        if len(set(names)) != len(names):
            raise _Refusal(f"some repetitions share {names[0]}, and not all")
        slots.append(names)
    times = collections.Counter(itertools.chain.from_iterable(slots))
    several = [name for name, count in times.items() if count > 1]
    if several:
        raise _Refusal(f"{several[0]} is read by several repetitions")
    return tuple(slots)


def _check_uses(program: ExportedProgram, run: Run, taken: range, slots: tuple[tuple[str, ...], ...]) -> None:
    """Checks that nothing else reads what goes.

    Raises:
        _Refusal: something does.
    """
    where = {node: index for index, piece in enumerate(run.repetitions) for node in piece}
    output = program.graph.output_node()
    returned = {
        value
        for spec, value in zip(program.graph_signature.output_specs, output.args[0], strict=True)
        if spec.kind != OutputKind.BUFFER_MUTATION
    }
    # What the last one in front hands over is read by the first one that goes, and by none behind.
    for index in range(taken[0] - 1, taken[-1] + 1):
        for node in run.repetitions[index]:
            for user in node.users:
                if user is output:
                    if node in returned:
                        raise _Refusal(f"{node.name} of a repetition is returned")
                elif not is_number(user) and not is_assertion(user) and where.get(user) not in (index, index + 1):
                    raise _Refusal(f"{node.name} of a repetition is read behind the next one, by {user.name}")
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    nodes = {fqn: placeholders[name] for name, fqn in constant_names(program).items()}
    for names in slots:
        for index in taken:
            for user in readers(nodes[names[index]]):
                if where.get(user) != index and not is_assertion(user):
                    raise _Refusal(f"{names[index]} is read outside of its repetition, by {user.name}")


def _numbers_in_use(program: ExportedProgram, run: Run, taken: range) -> dict[Node, Node]:
    """For numbers that are computed from what goes, and read by what stays: a number of the same value before them.

    Raises:
        _Refusal: there is none.
    """
    gone: set[Node] = {node for index in taken for node in run.repetitions[index]}
    known: dict[Any, Node] = {}
    replaced: dict[Node, Node] = {}
    for node in program.graph.nodes:
        if node.op != "call_function" or not is_number(node):
            continue
        key = signature(node.meta["val"])
        if not any(source in gone for source in node.all_input_nodes):
            known.setdefault(key, node)
            continue
        gone.add(node)
        if any(not is_number(user) and user not in gone for user in node.users):
            if key not in known:
                raise _Refusal(f"{node.name} is a number that is read behind")
            replaced[node] = known[key]
    return replaced


def _take_out(
    program: ExportedProgram, run: Run, taken: range, slots: tuple[tuple[str, ...], ...], numbers: dict[Node, Node]
) -> tuple[ExportedProgram, Folded]:
    made = copy_graph(program)
    copy_of = dict(zip(program.graph.nodes, made.graph.nodes, strict=True))
    graph, signature_ = made.graph, made.graph_signature
    gone = {copy_of[node] for index in taken for node in run.repetitions[index]}
    for node, other in numbers.items():
        copy_of[node].replace_all_uses_with(copy_of[other], delete_user_cb=lambda user: user not in gone)
    for node, other in zip(run.repetitions[taken[-1]], run.repetitions[taken[0] - 1], strict=True):
        copy_of[node].replace_all_uses_with(
            copy_of[other], delete_user_cb=lambda user: user not in gone and user.op != "output"
        )
    names = {name[index] for name in slots for index in taken}
    inputs = tuple(spec for spec in signature_.input_specs if spec.target is not None)
    output = graph.output_node()
    kept = [
        (spec, value)
        for spec, value in zip(signature_.output_specs, output.args[0], strict=True)
        if not (spec.kind == OutputKind.BUFFER_MUTATION and spec.target in names)
    ]
    output.args = (tuple(value for _, value in kept),)
    signature_.output_specs = [spec for spec, _ in kept]
    lost = {spec.arg.name for spec in signature_.input_specs if spec.target in names}
    signature_.input_specs = [spec for spec in signature_.input_specs if spec.target not in names]
    for node in reversed(list(graph.nodes)):
        checks_gone = is_assertion(node) and any(
            source in gone or part_of_constant(source)[0].name in lost for source in node.all_input_nodes
        )
        source, part = part_of_constant(node)
        is_left_over = not node.users and (
            node.op == "get_attr" or (node.op == "call_function" and is_number(node)) or (part and source.name in lost)
        )
        if node in gone or checks_gone or is_left_over or (node.op == "placeholder" and node.name in lost):
            graph.erase_node(node)
    tensors = {}
    for name in names:
        table: Any = made.state_dict if name in made.state_dict else made.constants
        tensors[name] = table.pop(name)
    made.graph_module.recompile()
    log.info("%d of %d repetitions are left out until they are compiled", len(taken), len(run.repetitions))
    return made, Folded(len(taken), taken[0], slots, inputs, tensors)


def flattened(folded: Folded, program: ExportedProgram) -> Folded:
    """What was taken out, when tensor subclasses among the constants have become the tensors that they are made of.

    Args:
        folded: of the program before.
        program: what is left of it, decomposed: constants of subclasses have names of their parts.

    Raises:
        FoldError: a constant has become something else.
    """
    specs: dict[str, list[InputSpec]] = {}
    for spec in program.graph_signature.input_specs:
        if spec.target is not None:
            specs.setdefault(_whole_name(spec.target), []).append(spec)
    slot_of = {name: names for names in folded.slots for name in names}
    slots: dict[tuple[str, ...], None] = {}
    tensors: dict[str, Any] = {}
    inputs: list[InputSpec] = []
    for whole in folded.inputs:
        name = str(whole.target)
        if name not in slot_of:
            inputs += specs.get(name, [])
            continue
        names = slot_of[name]
        held = _parts(folded.tensors[name]) if name in folded.tensors else []
        # What has become of the first repetition's.
        for spec in specs.get(names[0], ()):
            part = _part_of(str(spec.target))
            fqn = _part_name(name, part)
            argument = TensorArgument(name=spec.arg.name.replace(_flat(str(spec.target)), _flat(fqn)))
            inputs.append(dataclasses.replace(spec, arg=argument, target=fqn))
            slots[tuple(_part_name(each, part) for each in names)] = None
            if held:
                if len(held) <= (part or 0):
                    raise FoldError(
                        f"{fqn}: expected one of the {len(held)} tensors that {name} is made of. "
                        "Lower with CudaPartitioner(..., folds=False), which takes longer."
                    )
                tensors[fqn] = held[part or 0]
    return dataclasses.replace(folded, slots=tuple(slots), inputs=tuple(inputs), tensors=tensors)


# As torch names the tensors that a weight of a subclass is made of.
_PART = re.compile(r"(?P<module>(?:.*\.)?)parametrizations\.(?P<name>[^.]+)\.original(?P<part>\d+)")


def _whole_name(name: str) -> str:
    found = _PART.fullmatch(name)
    return name if found is None else found["module"] + found["name"]


def _part_of(name: str) -> int | None:
    found = _PART.fullmatch(name)
    return None if found is None else int(found["part"])


def _part_name(name: str, part: int | None) -> str:
    if part is None:
        return name
    module, dot, last = name.rpartition(".")
    return f"{module}{dot}parametrizations.{last}.original{part}"


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _parts(value: Any) -> list[torch.Tensor]:
    """The plain tensors that a constant is made of, itself if it is one, in the order of their names."""
    inner: Any = value.data if isinstance(value, torch.nn.Parameter) else value
    if type(inner) is torch.Tensor:
        return [value]
    names, _ = inner.__tensor_flatten__()
    return [part for name in names for part in _parts(getattr(inner, name))]

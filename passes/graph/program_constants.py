"""Weights of a program: their names and values, new ones, and those that nothing reads any more."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node

from etcuda.passes.graph.meta import tensor_of
from etcuda.passes.graph.recipes import recipe_of
from etcuda.torch_private import fake_mode_of, weak_storage

_CONSTANTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_STATE = "etcuda_state"
_METHODS = "etcuda_other_methods"
Made = TypeVar("Made")
# What was made of which weights. The methods of a program share it, and it lives as long as one of them uses it.
_MADE: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()


def mark_state(program: ExportedProgram, names: Collection[str]) -> None:
    """Marks constants that other methods of the program write to, so that no pass takes their content for final."""
    program.graph_module.meta[_STATE] = frozenset(names)


def mark_other_methods(program: ExportedProgram) -> None:
    """Marks a program beside which there are other methods, so that passes make the same of weights that they share."""
    program.graph_module.meta[_METHODS] = True


def has_other_methods(program: ExportedProgram) -> bool:
    """Whether there are methods that may read the same weights."""
    return _METHODS in program.graph_module.meta


def is_state(program: ExportedProgram, target: str | None) -> bool:
    """Whether this program, or another method, writes to a constant."""
    marked = program.graph_module.meta.get(_STATE, frozenset())
    return target in marked or target in program.graph_signature.buffers_to_mutate.values()


def target_of(program: ExportedProgram, node: object) -> str | None:
    """Fully qualified name of a weight that no method writes to; ``None`` if the node is something else."""
    if not isinstance(node, Node) or node.op != "placeholder":
        return None
    found = [spec for spec in program.graph_signature.input_specs if spec.arg.name == node.name]
    if not found or found[0].kind not in _CONSTANTS or found[0].target is None:
        return None
    return None if is_state(program, found[0].target) else found[0].target


def value_of(program: ExportedProgram, target: str) -> Tensor:
    """The weight of a name, a plain tensor, or the stand-in for a weight that is yet to be made."""
    value: Any = program.state_dict.get(target, program.constants.get(target))
    if recipe_of(value) is not None:
        # Itself, for its recipe is known as long as it lives.
        return value  # type: ignore[no-any-return]
    return value.data if isinstance(value, torch.nn.Parameter) else value


def made_of(parts: Sequence[Tensor], purpose: object, make: Callable[[], Made]) -> Made:
    """What ``make`` returns: the same for the same parts and purpose, as long as it is in use.

    Args:
        parts: the weights that it is made of.
        purpose: what else its value depends on.
        make: makes it; a stand-in for a weight, or what such are made by.
    """
    # The key lives as long as what was made, so that no other memory can have it meanwhile.
    key = (purpose, *((weak_storage(p), p.storage_offset(), p.shape, p.stride(), p.dtype) for p in parts))
    found: Made | None = _MADE.get(key)
    if found is None:
        found = make()
        _MADE[key] = found
    return found


def insert_constant(program: ExportedProgram, before: Node, name: str, value: Tensor) -> Node:
    """Adds a weight to the program; returns its placeholder, which stands in front of that of the weight ``before``.

    Args:
        program: gets the value, and an input of the kind (parameter, buffer, constant) that ``before`` is.
        before: the placeholder of another weight.
        name: fully qualified, of no other weight.
        value: the weight, or what stands for it, which will be where ``before`` is.
    """
    signature = program.graph_signature
    index = next(i for i, spec in enumerate(signature.input_specs) if spec.arg.name == before.name)
    old = signature.input_specs[index]
    table: dict[str, Any] = program.state_dict if old.target in program.state_dict else program.constants
    table[name] = value
    with program.graph.inserting_before(before):
        made: Node = program.graph.placeholder("w_" + re.sub(r"[^0-9a-zA-Z]", "_", name))
    # The target is a parameter of generated Python code, and the name is of no other node.
    made.target = made.name
    mode: Any = fake_mode_of([tensor_of(before)])
    with mode:
        device = tensor_of(before).device
        made.meta = {**before.meta, "val": torch.empty(value.shape, dtype=value.dtype, device=device)}
    spec = InputSpec(kind=old.kind, arg=TensorArgument(name=made.name), target=name, persistent=old.persistent)
    signature.input_specs = [*signature.input_specs[:index], spec, *signature.input_specs[index:]]
    return made


def forget_unused(program: ExportedProgram, nodes: Sequence[Node]) -> None:
    """Takes those weights out of the program that nothing reads."""
    unused = [node for node in nodes if not node.users]
    names = {node.name for node in unused}
    signature = program.graph_signature
    gone = [spec for spec in signature.input_specs if spec.arg.name in names]
    signature.input_specs = [spec for spec in signature.input_specs if spec.arg.name not in names]
    kept = {spec.target for spec in signature.input_specs}
    for node in unused:
        program.graph.erase_node(node)
    for spec in gone:
        if spec.target is not None and spec.target not in kept:
            program.state_dict.pop(spec.target, None)
            program.constants.pop(spec.target, None)

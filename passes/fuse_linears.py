"""Quantised products of one input become one, whose weight has the rows of all: what the fusing passes share."""

from __future__ import annotations

import dataclasses
import logging
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node
from torch.multiprocessing import reductions

from etcuda.passes.base import insert_call, tensor_of
from etcuda.passes.quantized_call import LinearCall, read_linear

log = logging.getLogger(__name__)

aten = torch.ops.aten

_CONSTANTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_weak: Any = reductions.StorageWeakRef
# Joined weights by what they were joined from: the methods of a program share them, and they live as long as those.
_JOINED: weakref.WeakValueDictionary[Any, Tensor] = weakref.WeakValueDictionary()


def linear_calls(program: ExportedProgram) -> list[LinearCall]:
    """Quantised products outside control flow, in order."""
    found = (read_linear(node) for node in program.graph.nodes)
    return [call for call in found if call is not None]


def refuse_fusion(program: ExportedProgram, calls: list[LinearCall]) -> str | None:
    """Why products stay apart, in words; ``None`` if they can become one."""
    first = calls[0]
    for call in calls[1:]:
        if call.x is not first.x:
            return f"they read {first.x.name} and {call.x.name}"
        if (call.bits, call.form) != (first.bits, first.form):
            return f"formats differ, {first.form} and {call.form}"
        if call.activation != first.activation:
            return f"activations differ, {first.activation!r} and {call.activation!r}"
        if (call.bias is None) != (first.bias is None):
            return "one has a bias and the other has not"
        if call.bias is not None and first.bias is not None:
            dtypes = (tensor_of(first.bias).dtype, tensor_of(call.bias).dtype)
            if dtypes[0] != dtypes[1]:
                return f"biases differ in dtype, {dtypes[0]} and {dtypes[1]}"
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    mutated = set(program.graph_signature.buffers_to_mutate.values())
    seen: set[Node] = set()
    for call in calls:
        for node in call.operands:
            spec = specs.get(node.name) if node.op == "placeholder" else None
            if spec is None or spec.kind not in _CONSTANTS or spec.target in mutated:
                return f"{node.name} is no constant"
            if len(node.users) > 1 or node in seen:
                return f"{node.name} is used elsewhere too and would be stored twice"
            seen.add(node)
    return None


def fuse(program: ExportedProgram, calls: list[LinearCall]) -> None:
    """Replaces products that ``refuse_fusion`` does not refuse by one and slices of its result.

    The program then holds the joined weight and not those that it was joined from.
    """
    first = calls[0]
    joined = [
        None if call_parts[0] is None else _join(program, [part for part in call_parts if part is not None])
        for call_parts in zip(*([*call.stored, call.bias] for call in calls), strict=True)
    ]
    target: Any = first.node.target
    whole = insert_call(first.node, target, (first.x, *joined, first.group_size, first.activation))
    start, unused = 0, list(dict.fromkeys(node for call in calls for node in call.operands))
    dim = tensor_of(whole).dim() - 1
    for call in calls:
        part = insert_call(first.node, aten.slice.Tensor, (whole, dim, start, start + call.n))
        call.node.replace_all_uses_with(part)
        program.graph.erase_node(call.node)
        start += call.n
    _forget(program, unused)
    names = " | ".join(call.node.name for call in calls)
    log.info("%s: one product with %d rows, %s", names, start, dataclasses.asdict(first.form))


def _join(program: ExportedProgram, nodes: list[Node]) -> Node:
    """A new constant in front of the first of ``nodes``: their rows after one another."""
    signature = program.graph_signature
    index = next(i for i, spec in enumerate(signature.input_specs) if spec.arg.name == nodes[0].name)
    specs = {spec.arg.name: spec for spec in signature.input_specs}
    targets = [str(specs[node.name].target) for node in nodes]
    old = signature.input_specs[index]
    name = f"{targets[0]}_and_{len(targets) - 1}_more"
    table = program.state_dict if targets[0] in program.state_dict else program.constants
    value = _joined([_value(program, target) for target in targets])
    table[name] = value
    with program.graph.inserting_before(nodes[0]):
        made: Node = program.graph.placeholder(f"{nodes[0].name}_and_{len(targets) - 1}_more")
    mode = tensor_of(nodes[0]).fake_mode  # type: ignore[attr-defined]
    with mode:
        made.meta = {**nodes[0].meta, "val": torch.empty(value.shape, dtype=value.dtype, device=value.device)}
    arg = TensorArgument(name=made.name)
    spec = InputSpec(kind=old.kind, arg=arg, target=name, persistent=old.persistent)
    signature.input_specs = [*signature.input_specs[:index], spec, *signature.input_specs[index:]]
    return made


def _value(program: ExportedProgram, target: str) -> Tensor:
    value: Any = program.state_dict.get(target, program.constants.get(target))
    return value.data if isinstance(value, torch.nn.Parameter) else value


def _joined(parts: list[Tensor]) -> Tensor:
    """The rows of all parts, a parameter; the same one for the same parts as long as it is in use."""
    # A weak reference to a storage keeps its address from being used again.
    key = tuple(
        (_weak(part.untyped_storage()), part.storage_offset(), part.shape, part.stride(), part.dtype) for part in parts
    )
    found = _JOINED.get(key)
    if found is None:
        found = torch.nn.Parameter(torch.cat(parts), requires_grad=False)
        _JOINED[key] = found
    return found


def _forget(program: ExportedProgram, nodes: list[Node]) -> None:
    """Takes constants that nothing reads out of the program."""
    names = {node.name for node in nodes}
    signature = program.graph_signature
    gone = [spec for spec in signature.input_specs if spec.arg.name in names]
    signature.input_specs = [spec for spec in signature.input_specs if spec.arg.name not in names]
    kept = {spec.target for spec in signature.input_specs}
    for node in nodes:
        program.graph.erase_node(node)
    for spec in gone:
        if spec.target is not None and spec.target not in kept:
            program.state_dict.pop(spec.target, None)
            program.constants.pop(spec.target, None)

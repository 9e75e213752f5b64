"""Which partition owns a weight or a buffer, and what becomes of a buffer that none owns."""

from __future__ import annotations

import logging
from collections.abc import Set

import torch
from executorch.exir.lowered_backend_module import LoweredBackendModule
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Node

from etcuda.options import BACKEND_ID
from etcuda.partitioner.aliases import mutated_buffers
from etcuda.partitioner.bounds import note_bounds
from etcuda.partitioner.guards import declared_conditions
from etcuda.partitioner.notes import OutsideUse, take_notes

log = logging.getLogger(__name__)

TAG = "delegation_tag"
# ExecuTorch's emitter stores the content of a mutated buffer that is marked so, and of no other.
_KEEP_CONTENT = "et_init_buffer"


def tag_constants(program: ExportedProgram, tags: set[str]) -> None:
    """Tags each parameter, constant and unchanged buffer that one of our partitions reads.

    One that several partitions, or nodes outside them, read too is copied by ExecuTorch, a node per reader; equal
    bytes are stored once. One that another partitioner has tagged is left to it.
    """
    signature = program.graph_signature
    # The signature makes its tables anew whenever it is asked.
    buffers, mutated = signature.inputs_to_buffers, set(signature.buffers_to_mutate.values())
    for node in owned_placeholders(program):
        if TAG in node.meta or buffers.get(node.name) in mutated:
            continue
        for user in node.users:
            if user.meta.get(TAG) in tags:
                node.meta[TAG] = user.meta[TAG]
                break


def tag_mutated_buffers(program: ExportedProgram, tags: set[str]) -> dict[str, str]:
    """Tags each mutated buffer that one partition alone reads and writes, so that it stays in the delegate.

    Returns:
        For each mutated buffer that could not be owned though a partition of ours uses it: its name and why. Such a
        buffer stays in the program: the delegate gets it as an input, and ExecuTorch writes the new value back.
    """
    signature = program.graph_signature
    output = program.graph.output_node()
    by_name = {node.name: node for node in program.graph.nodes}
    inputs, new_value = signature.inputs_to_buffers, {t: by_name[n] for n, t in signature.buffers_to_mutate.items()}
    kept: dict[str, str] = {}
    owned: dict[str, list[tuple[Node, str]]] = {}
    for node in owned_placeholders(program):
        target = inputs.get(node.name)
        if target not in new_value or TAG in node.meta:
            continue
        using = {user.meta.get(TAG) for user in (*node.users, new_value[target])} & tags
        if not using:
            continue
        reason = _refuse(node, new_value[target], output, program)
        if reason is None:
            owned.setdefault(using.pop(), []).append((node, target))
        else:
            kept[target] = reason
    for tag, buffers in owned.items():
        if not _has_result(tag, {new_value[target] for _, target in buffers}, program):
            # ExecuTorch drops a delegate without results; the new value of the smallest buffer becomes one.
            smallest = min(buffers, key=lambda each: each[0].meta["val"].numel())
            buffers.remove(smallest)
            kept[smallest[1]] = f"the partition that writes it ({tag}) computes nothing that the method returns"
        for node, _ in buffers:
            node.meta[TAG] = tag
    for target, reason in kept.items():
        log.info("buffer %s stays in the program and is copied at every call: %s", target, reason)
    return kept


def _has_result(tag: str, owned: set[Node], program: ExportedProgram) -> bool:
    """Whether something outside a partition takes a value of it, other than the new values of the buffers it owns."""
    output = program.graph.output_node()
    members = [node for node in program.graph.nodes if node.meta.get(TAG) == tag and node not in owned]
    return any(user is output or user.meta.get(TAG) != tag for node in members for user in node.users)


def _refuse(buffer: Node, value: Node, output: Node, program: ExportedProgram) -> str | None:
    tag = value.meta.get(TAG)
    if value is buffer or tag is None:
        return f"its new value {value.name} is not computed in a partition"
    for user in buffer.users:
        if user.meta.get(TAG) != tag:
            return f"{user.name} reads it outside the partition that writes it ({tag})"
    for user in value.users:
        if user is not output and user.meta.get(TAG) != tag:
            return f"{user.name} reads its new value outside the partition that writes it ({tag})"
    kinds = [spec.kind for spec in program.graph_signature.output_specs if spec.arg.name == value.name]
    if kinds != [OutputKind.BUFFER_MUTATION]:
        return f"its new value {value.name} is also another output of the program"
    return None


def note_declared(program: ExportedProgram) -> None:
    """Notes what later stages no longer see: the bounds that were declared, and which state is all zeros.

    Args:
        program: from ``torch.export.export``.
    """
    notes = take_notes(program)
    note_bounds(program)
    notes.conditions = declared_conditions(program)
    tables = (program.state_dict, program.constants)
    mutated = mutated_buffers(program)
    notes.zeros = frozenset(name for table in tables for name in table if name in mutated and _is_zero(table[name]))


def _is_zero(value: object) -> bool:
    return type(value) is torch.Tensor and not value.is_meta and not bool(value.any())


def settle_buffers(program: ExportedProgram, tags: Set[str], kept: dict[str, str]) -> None:
    """Sees to the buffers that our partitions do not own: their initial content is kept, and noted who uses them.

    Args:
        program: a tagged program; parts of it may be delegates already.
        tags: those of our partitions.
        kept: from ``tag_mutated_buffers``.
    """
    notes = take_notes(program)
    notes.outside = outside_uses(program, tags, kept)
    keep_content(program, notes.zeros)


def keep_content(program: ExportedProgram, zeros: Set[str]) -> None:
    """Has ExecuTorch store the initial content of each mutated buffer that stays with it.

    Args:
        program: a tagged program.
        zeros: buffers whose content is all zeros, which ExecuTorch's memory has from the start.
    """
    signature = program.graph_signature
    inputs, mutated = signature.inputs_to_buffers, set(signature.buffers_to_mutate.values())
    for node in program.graph.nodes:
        target = inputs.get(node.name) if node.op == "placeholder" else None
        if target in mutated and TAG not in node.meta and target not in zeros:
            node.meta[_KEEP_CONTENT] = True


def outside_uses(program: ExportedProgram, tags: Set[str], kept: dict[str, str]) -> dict[str, OutsideUse]:
    """Buffers that are used outside of our partitions, at least in part, by name.

    Args:
        program: a tagged program; parts of it may be delegates already.
        tags: those of our partitions.
        kept: from ``tag_mutated_buffers``.
    """
    found: dict[str, OutsideUse] = {}
    signature = program.graph_signature
    inputs, mutated = signature.inputs_to_buffers, set(signature.buffers_to_mutate.values())
    for node in program.graph.nodes:
        target = inputs.get(node.name) if node.op == "placeholder" else None
        if target is None:
            continue
        readers = [user.name for user in node.users if user.meta.get(TAG) not in tags]
        is_used = target in mutated or bool(node.users)
        if is_used and (node.meta.get(TAG) not in tags or readers):
            reason = kept.get(target) or _outside_reason(readers)
            value = node.meta["val"]
            found[target] = OutsideUse(reason, target in mutated, tuple(value.shape), value.dtype)
    for module in program.graph_module.modules():
        if isinstance(module, LoweredBackendModule) and module.backend_id != BACKEND_ID:
            found |= _of_backend(module)
    return found


def _of_backend(module: LoweredBackendModule) -> dict[str, OutsideUse]:
    inner = module.original_module
    mutated = set(inner.graph_signature.buffers_to_mutate.values())
    named = inner.graph_signature.inputs_to_buffers
    values = {named[node.name]: node.meta["val"] for node in inner.graph.nodes if node.name in named}
    return {
        target: OutsideUse(f"backend {module.backend_id} has it", target in mutated, tuple(value.shape), value.dtype)
        for target, value in values.items()
    }


def _outside_reason(readers: list[str]) -> str:
    return f"{', '.join(readers)} read it outside of our delegates" if readers else "no operator of ours takes it"


def owned_placeholders(program: ExportedProgram) -> list[Node]:
    """Placeholders of parameters, buffers and lifted constants."""
    signature = program.graph_signature
    names = {
        *signature.inputs_to_parameters,
        *signature.inputs_to_buffers,
        *signature.inputs_to_lifted_tensor_constants,
    }
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]

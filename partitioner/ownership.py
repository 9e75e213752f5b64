"""Which partition owns a weight or a buffer."""

from __future__ import annotations

import logging

from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Node

log = logging.getLogger(__name__)

TAG = "delegation_tag"


def tag_constants(program: ExportedProgram, tags: set[str]) -> None:
    """Tags each parameter, constant and unchanged buffer that one of our partitions reads.

    One that several partitions, or nodes outside them, read too is copied by ExecuTorch, a node per reader; equal
    bytes are stored once. One that another partitioner has tagged is left to it.
    """
    signature = program.graph_signature
    mutated = set(signature.buffers_to_mutate.values())
    for node in owned_placeholders(program):
        if TAG in node.meta or signature.inputs_to_buffers.get(node.name) in mutated:
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
    new_value = {target: by_name[name] for name, target in signature.buffers_to_mutate.items()}
    kept: dict[str, str] = {}
    for node in owned_placeholders(program):
        target = signature.inputs_to_buffers.get(node.name)
        if target not in new_value or TAG in node.meta:
            continue
        using = {user.meta.get(TAG) for user in (*node.users, new_value[target])} & tags
        if not using:
            continue
        reason = _refuse(node, new_value[target], output, program)
        if reason is None:
            node.meta[TAG] = using.pop()
        else:
            kept[target] = reason
            log.info("buffer %s stays in the program and is copied at every call: %s", target, reason)
    return kept


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


def owned_placeholders(program: ExportedProgram) -> list[Node]:
    """Placeholders of parameters, buffers and lifted constants."""
    signature = program.graph_signature
    names = {
        *signature.inputs_to_parameters,
        *signature.inputs_to_buffers,
        *signature.inputs_to_lifted_tensor_constants,
    }
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]

"""Copies that let a delegate have a method's state for itself.

A buffer stays in the delegate if one partition computes its new value, nothing else needs that tensor, and the method
needs another result of the partition. So what a method returns or reads elsewhere is made a copy, a new value that
nothing computes is made a call, and a method that returns nothing computed returns a copy of an output.
"""

from __future__ import annotations

from collections.abc import Callable, Set

import torch
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Node

from etcuda.options import BackendConfig
from etcuda.partitioner.aliases import (
    aliases_of_buffers,
    base_name,
    buffer_placeholders,
    functional_copy,
    numel_of,
    same_shape,
    viewed,
    written_buffers,
)
from etcuda.partitioner.results import (
    COPIES,
    LIKE,
    add_result,
    is_result,
    moves_only,
    needs_result,
    set_output,
    stays_outside,
)
from etcuda.passes.graph.calls import insert_call
from etcuda.passes.graph.copy_graph import copy_graph

aten = torch.ops.aten

# Replace all of their first argument, whatever it holds.
_RANDOM = ("bernoulli", "cauchy", "exponential", "geometric", "log_normal", "normal", "random", "uniform")
_OVERWRITING = frozenset({*_RANDOM, "copy", "fill", "zero"})


def copy_state(program: ExportedProgram, config: BackendConfig) -> ExportedProgram:
    """Inserts the copies.

    Args:
        program: from ``torch.export.export``; not changed.
        config: target and options.

    Returns:
        ``program`` if it needs none, else a functional copy of it.
    """
    written = written_buffers(program)
    if written and not _may_need_copies(program, written, config):
        return program
    if not written and not _edits(program, config) and not needs_result(program, config):
        return program
    made = functional_copy(program) if written else copy_graph(program)
    for edit in _edits(made, config):
        edit()
    if needs_result(made, config):
        add_result(made, config)
    made.graph.lint()
    made.graph_module.recompile()
    return made


def _may_need_copies(program: ExportedProgram, written: set[Node], config: BackendConfig) -> bool:
    """Whether the functional graph may want an edit. Making it takes time, and most caches are written in part."""
    aliases = aliases_of_buffers(program)
    outputs = program.graph.output_node().all_input_nodes
    if any(node in aliases for node in outputs) or not any(is_result(node, config) for node in outputs):
        return True
    for node in program.graph.nodes:
        for source, is_written in viewed(node):
            root = aliases.get(source)
            whole = root is not None and numel_of(source) == numel_of(root)
            if is_written and whole and base_name(node) in _OVERWRITING:
                return True
    state = {node for node, root in aliases.items() if root in written}
    readers = {user for node in state for user in node.users if not any(written for _, written in viewed(user))}
    return any(base_name(user) in COPIES or stays_outside(user, config) for user in readers)


def _edits(program: ExportedProgram, config: BackendConfig) -> list[Callable[[], None]]:
    """What to change, to be done in this order."""
    signature, graph = program.graph_signature, program.graph
    nodes = {node.name: node for node in graph.nodes}
    buffers = buffer_placeholders(program)
    placeholder = {target: node for node, target in buffers.items()}
    edits: list[Callable[[], None]] = []
    values: dict[Node, Node] = {}
    for index, spec in enumerate(signature.output_specs):
        if spec.kind is OutputKind.BUFFER_MUTATION and spec.target in placeholder:
            buffer, value = placeholder[spec.target], nodes[spec.arg.name]
            if value in values or not _computes(buffer, value):
                edits.append(_store_selected(program, index, buffer, value))
            else:
                values[value] = buffer
    mutated = set(signature.buffers_to_mutate.values())
    returned: dict[Node, list[int]] = {}
    for index, spec in enumerate(signature.output_specs):
        if spec.kind is not OutputKind.BUFFER_MUTATION and spec.arg.name in nodes:
            returned.setdefault(nodes[spec.arg.name], []).append(index)
    for value in values:
        outside = [user for user in value.users if stays_outside(user, config)]
        if outside or value in returned:
            edits.append(_read_copy(program, value, outside, returned.get(value, []), selected=False))
    for buffer, target in buffers.items():
        users = [
            user
            for user in buffer.users
            if _only_copied(user, returned.keys()) or (target in mutated and stays_outside(user, config))
        ]
        if users or buffer in returned:
            edits.append(_read_copy(program, buffer, users, returned.get(buffer, []), selected=True))
    return edits


def _computes(buffer: Node, value: Node) -> bool:
    """Whether the new value comes from the old one through arithmetic, in the buffer's dtype and shape."""
    want, got = buffer.meta["val"], value.meta["val"]
    if value.op == "placeholder" or want.dtype != got.dtype or not same_shape(want, got):
        return False
    reached: dict[Node, bool] = {buffer: False}
    for node in value.graph.nodes:
        sources = [reached[source] for source in node.all_input_nodes if source in reached]
        if node.op == "call_function" and sources and base_name(node) not in LIKE:
            reached[node] = any(sources) or not moves_only(node)
        if node is value:
            break
    return reached.get(value, False)


def _only_copied(user: Node, returned: Set[Node]) -> bool:
    """Whether what is returned comes from this reader through views and copies alone."""
    stack, seen = [user], set[Node]()
    while stack:
        node = stack.pop()
        if node.op == "call_function" and node not in seen and moves_only(node):
            if node in returned:
                return True
            seen.add(node)
            stack += node.users
    return False


def _select(before: Node, value: Node, other: Node) -> Node:
    """``value``, as a call that reads both.

    The condition is always true. A clone would not read ``other``, and the partitioner leaves clones that nothing is
    computed beside to ExecuTorch.
    """
    want = other.meta["val"]
    if value.meta["val"].dtype != want.dtype:
        value = insert_call(before, aten._to_copy.default, (value,), dtype=want.dtype)
    true = insert_call(before, aten.full.default, ([], True), dtype=torch.bool, device=want.device)
    return insert_call(before, aten.where.self, (true, value, other))


def _store_selected(program: ExportedProgram, index: int, buffer: Node, value: Node) -> Callable[[], None]:
    def edit() -> None:
        set_output(program, index, _select(program.graph.output_node(), value, buffer))

    return edit


def _read_copy(
    program: ExportedProgram, value: Node, users: list[Node], outputs: list[int], *, selected: bool
) -> Callable[[], None]:
    """Gives some users and outputs a copy of a value."""

    def edit() -> None:
        first = min(users, default=program.graph.output_node())
        made = _select(first, value, value) if selected else insert_call(first, aten.clone.default, (value,))
        for user in users:
            user.replace_input_with(value, made)
        for index in outputs:
            set_output(program, index, made)

    return edit

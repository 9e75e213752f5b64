"""Copies that let a delegate have a method's state for itself.

A buffer stays in the delegate if one partition computes its new value, nothing else needs that tensor, and ExecuTorch
needs another result of the partition: it drops a delegate without results. So what a method returns or reads elsewhere
is made a copy, a new value that nothing computes is made a call, and a method that returns nothing computed returns a
copy of an output.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Set

import torch
from torch.export import default_decompositions
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import OutputKind, OutputSpec, TensorArgument
from torch.fx import Node

from etcuda.options import BackendConfig
from etcuda.partitioner.support import refuse
from etcuda.passes.graph.calls import insert_call
from etcuda.passes.graph.copy_graph import copy_graph

aten = torch.ops.aten

# Replace all of their first argument, whatever it holds.
_RANDOM = ("bernoulli", "cauchy", "exponential", "geometric", "log_normal", "normal", "random", "uniform")
_OVERWRITING = frozenset({*_RANDOM, "copy", "fill", "zero"})
# Results that do not depend on what their first argument holds.
_LIKE = frozenset({"empty_like", "fill", "full_like", "ones_like", "rand_like", "randn_like", "zero", "zeros_like"})
_CONSTANTS = frozenset({"arange", "empty", "full", "ones", "scalar_tensor", "sym_size", "zeros"})
_COPIES = frozenset({"_to_copy", "alias", "clone", "contiguous", "copy", "detach", "lift_fresh_copy", "to"})


def copy_state(program: ExportedProgram, config: BackendConfig) -> ExportedProgram:
    """Inserts the copies.

    Args:
        program: from ``torch.export.export``; not changed.
        config: target and options.

    Returns:
        ``program`` if it needs none, else a functional copy of it.
    """
    written = _written(program)
    if written and not _may_need_copies(program, written, config):
        return program
    if not written and not _edits(program, config) and not _needs_result(program, config):
        return program
    made = copy_graph(program)
    if written:
        _match_overwrites(made)
        made = made.run_decompositions({})
    for edit in _edits(made, config):
        edit()
    if _needs_result(made, config):
        _add_result(made, config)
    made.graph.lint()
    made.graph_module.recompile()
    return made


def mutated_buffers(program: ExportedProgram) -> set[str]:
    """Names of the buffers that a program writes to, functional or not."""
    buffers = _buffers(program)
    return {*program.graph_signature.buffers_to_mutate.values(), *(buffers[node] for node in _written(program))}


# The graph as torch.export.export writes it: operators write to buffers and to views of them.


def _buffers(program: ExportedProgram) -> dict[Node, str]:
    named = program.graph_signature.inputs_to_buffers
    return {node: named[node.name] for node in program.graph.nodes if node.op == "placeholder" and node.name in named}


def _aliases(program: ExportedProgram) -> dict[Node, Node]:
    """Nodes that are, or view, a buffer: the placeholder of that buffer."""
    found: dict[Node, Node] = {node: node for node in _buffers(program)}
    for node in program.graph.nodes:
        for source, is_written in _viewed(node):
            if source in found and (is_written or node not in found):
                found[node] = found[source]
    return found


def _viewed(node: Node) -> Iterator[tuple[Node, bool]]:
    """Arguments whose memory the result has, and whether the call writes to it."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        if getattr(node.target, "__name__", "") == "getitem" and isinstance(node.args[0], Node):
            yield node.args[0], False
        return
    schema = node.target._schema
    for index, argument in enumerate(schema.arguments):
        given = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
        if argument.alias_info is not None and isinstance(given, Node):
            yield given, argument.alias_info.is_write


def _written(program: ExportedProgram) -> set[Node]:
    """Placeholders of buffers that a call writes to."""
    aliases = _aliases(program)
    return {
        aliases[source]
        for node in program.graph.nodes
        for source, is_written in _viewed(node)
        if is_written and source in aliases
    }


def _may_need_copies(program: ExportedProgram, written: set[Node], config: BackendConfig) -> bool:
    """Whether the functional graph may want an edit. Making it takes time, and most caches are written in part."""
    aliases = _aliases(program)
    outputs = program.graph.output_node().all_input_nodes
    if any(node in aliases for node in outputs) or not any(_is_result(node, config) for node in outputs):
        return True
    for node in program.graph.nodes:
        for source, is_written in _viewed(node):
            root = aliases.get(source)
            whole = root is not None and _numel(source) == _numel(root)
            if is_written and whole and _base_name(node) in _OVERWRITING:
                return True
    state = {node for node, root in aliases.items() if root in written}
    readers = {user for node in state for user in node.users if not any(written for _, written in _viewed(user))}
    return any(_base_name(user) in _COPIES or _stays_outside(user, config) for user in readers)


def _numel(node: Node) -> int | torch.SymInt | None:
    value = node.meta.get("val")
    return value.numel() if isinstance(value, torch.Tensor) else None


def _base_name(node: Node) -> str:
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    return str(node.target._schema.name.split("::")[-1]).rstrip("_")


def _match_overwrites(program: ExportedProgram) -> None:
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
        if got.dim() != want.dim() or any(a is not b and str(a) != str(b) for a, b in zip(got.shape, want.shape, strict=True)):
            source = insert_call(node, aten.expand.default, (source, _sizes(node, target)))
        node.args = (target, source, *node.args[2:])
    program.graph_module.recompile()


def _sizes(before: Node, tensor: Node) -> list[int | Node]:
    sizes: list[int | Node] = []
    for dim, size in enumerate(tensor.meta["val"].shape):
        sizes.append(size if isinstance(size, int) else insert_call(before, aten.sym_size.int, (tensor, dim)))
    return sizes


# The functional graph: each mutated buffer has a new value among the outputs.


def _edits(program: ExportedProgram, config: BackendConfig) -> list[Callable[[], None]]:
    """What to change, to be done in this order."""
    signature, graph = program.graph_signature, program.graph
    nodes = {node.name: node for node in graph.nodes}
    buffers = _buffers(program)
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
        outside = [user for user in value.users if _stays_outside(user, config)]
        if outside or value in returned:
            edits.append(_read_copy(program, value, outside, returned.get(value, []), selected=False))
    for buffer, target in buffers.items():
        users = [
            user
            for user in buffer.users
            if _only_copied(user, returned.keys()) or (target in mutated and _stays_outside(user, config))
        ]
        if users or buffer in returned:
            edits.append(_read_copy(program, buffer, users, returned.get(buffer, []), selected=True))
    return edits


def _computes(buffer: Node, value: Node) -> bool:
    """Whether the new value comes from the old one through arithmetic, in the buffer's dtype and shape."""
    want, got = buffer.meta["val"], value.meta["val"]
    if value.op == "placeholder" or want.dtype != got.dtype or list(map(str, want.shape)) != list(map(str, got.shape)):
        return False
    reached: dict[Node, bool] = {buffer: False}
    for node in value.graph.nodes:
        sources = [reached[source] for source in node.all_input_nodes if source in reached]
        if node.op == "call_function" and sources and _base_name(node) not in _LIKE:
            reached[node] = any(sources) or not _moves_only(node)
        if node is value:
            break
    return reached.get(value, False)


def _moves_only(node: Node) -> bool:
    """Whether a call only views or copies its input; the partitioner leaves a group of these to ExecuTorch."""
    return _base_name(node) in _COPIES or any(not is_written for _, is_written in _viewed(node))


def _only_copied(user: Node, returned: Set[Node]) -> bool:
    """Whether what is returned comes from this reader through views and copies alone."""
    stack, seen = [user], set[Node]()
    while stack:
        node = stack.pop()
        if node.op == "call_function" and node not in seen and _moves_only(node):
            if node in returned:
                return True
            seen.add(node)
            stack += node.users
    return False


def _stays_outside(node: Node, config: BackendConfig) -> bool:
    """Whether a call will be left to others as it is. One that is decomposed is judged by its parts, later."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if any(True for _ in _viewed(node)) or node.target in _decomposed():
        return False
    return refuse(node, config) is not None


@functools.cache
def _decomposed() -> frozenset[object]:
    return frozenset(default_decompositions())


def _needs_result(program: ExportedProgram, config: BackendConfig) -> bool:
    """Whether the method writes to a buffer and returns nothing that a delegate would compute."""
    is_written = any(spec.kind is OutputKind.BUFFER_MUTATION for spec in program.graph_signature.output_specs)
    return is_written and not any(_is_result(node, config) for node in _returned(program))


def _returned(program: ExportedProgram) -> dict[Node, int]:
    """Tensors that the method returns, and where."""
    values = program.graph.output_node().args[0]
    specs = program.graph_signature.output_specs
    return {
        value: index
        for index, (spec, value) in enumerate(zip(specs, values, strict=True))
        if spec.kind is OutputKind.USER_OUTPUT and isinstance(value, Node) and _numel(value) is not None
    }


def _is_result(node: Node, config: BackendConfig) -> bool:
    ancestors = _ancestors(node)
    return any(_is_arithmetic(each) for each in ancestors) and not any(
        _stays_outside(each, config) for each in ancestors
    )


def _ancestors(node: Node) -> set[Node]:
    """A node and all that it depends on."""
    stack, seen = [node], set[Node]()
    while stack:
        current = stack.pop()
        if current not in seen:
            seen.add(current)
            stack += current.all_input_nodes
    return seen


def _is_arithmetic(node: Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    return not _moves_only(node) and _base_name(node) not in _LIKE | _CONSTANTS and node.target.namespace == "aten"


def _add_result(program: ExportedProgram, config: BackendConfig) -> None:
    """Replaces an output that nothing computes by a copy that reads the new state."""
    output = program.graph.output_node()
    state = [
        value
        for spec, value in zip(program.graph_signature.output_specs, output.args[0], strict=True)
        if spec.kind is OutputKind.BUFFER_MUTATION and value.meta["val"].numel() != 0
    ]
    for node, index in _returned(program).items():
        if state and not any(_stays_outside(each, config) for each in _ancestors(node)):
            element = state[0]
            while element.meta["val"].dim() > 0:
                element = insert_call(output, aten.select.int, (element, 0, 0))
            true = insert_call(
                output, aten.full.default, ([], True), dtype=torch.bool, device=element.meta["val"].device
            )
            truth = insert_call(output, aten.logical_or.default, (element, true))
            _set_output(program, index, insert_call(output, aten.where.self, (truth, node, node)))
            return


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
        _set_output(program, index, _select(program.graph.output_node(), value, buffer))

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
            _set_output(program, index, made)

    return edit


def _set_output(program: ExportedProgram, index: int, node: Node) -> None:
    output = program.graph.output_node()
    values = list(output.args[0])
    values[index] = node
    output.args = (tuple(values),)
    spec = program.graph_signature.output_specs[index]
    program.graph_signature.output_specs[index] = OutputSpec(spec.kind, TensorArgument(node.name), spec.target)

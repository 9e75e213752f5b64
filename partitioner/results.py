"""What a method computes and returns: ExecuTorch drops a delegate without results."""

from __future__ import annotations

import functools

import torch
from torch.export import default_decompositions
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import OutputKind, OutputSpec, TensorArgument
from torch.fx import Node

from etcuda.options import BackendConfig
from etcuda.partitioner.aliases import base_name, numel_of, viewed
from etcuda.partitioner.support import refuse
from etcuda.passes.graph.calls import insert_call

aten = torch.ops.aten

# Results that do not depend on what their first argument holds.
LIKE = frozenset({"empty_like", "fill", "full_like", "ones_like", "rand_like", "randn_like", "zero", "zeros_like"})
_CONSTANTS = frozenset({"arange", "empty", "full", "ones", "scalar_tensor", "sym_size", "zeros"})
COPIES = frozenset({"_to_copy", "alias", "clone", "contiguous", "copy", "detach", "lift_fresh_copy", "to"})


def needs_result(program: ExportedProgram, config: BackendConfig) -> bool:
    """Whether the method writes to a buffer and returns nothing that a delegate would compute."""
    is_written = any(spec.kind is OutputKind.BUFFER_MUTATION for spec in program.graph_signature.output_specs)
    return is_written and not any(is_result(node, config) for node in _returned(program))


def _returned(program: ExportedProgram) -> dict[Node, int]:
    """Tensors that the method returns, and where."""
    values = program.graph.output_node().args[0]
    specs = program.graph_signature.output_specs
    return {
        value: index
        for index, (spec, value) in enumerate(zip(specs, values, strict=True))
        if spec.kind is OutputKind.USER_OUTPUT and isinstance(value, Node) and numel_of(value) is not None
    }


def is_result(node: Node, config: BackendConfig) -> bool:
    """Whether something is computed for a value, and nothing of it outside a delegate."""
    ancestors = _ancestors(node)
    return any(_is_arithmetic(each) for each in ancestors) and not any(
        stays_outside(each, config) for each in ancestors
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
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return True
    if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
        return False
    return not moves_only(node) and base_name(node) not in LIKE | _CONSTANTS


def add_result(program: ExportedProgram, config: BackendConfig) -> None:
    """Replaces an output that nothing computes by a copy that reads the new state."""
    output = program.graph.output_node()
    state = [
        value
        for spec, value in zip(program.graph_signature.output_specs, output.args[0], strict=True)
        if spec.kind is OutputKind.BUFFER_MUTATION and value.meta["val"].numel() != 0
    ]
    for node, index in _returned(program).items():
        if state and not any(stays_outside(each, config) for each in _ancestors(node)):
            element = state[0]
            while element.meta["val"].dim() > 0:
                element = insert_call(output, aten.select.int, (element, 0, 0))
            true = insert_call(
                output, aten.full.default, ([], True), dtype=torch.bool, device=element.meta["val"].device
            )
            truth = insert_call(output, aten.logical_or.default, (element, true))
            set_output(program, index, insert_call(output, aten.where.self, (truth, node, node)))
            return


def moves_only(node: Node) -> bool:
    """Whether a call only views or copies its input; the partitioner leaves a group of these to ExecuTorch."""
    return base_name(node) in COPIES or any(not is_written for _, is_written in viewed(node))


def stays_outside(node: Node, config: BackendConfig) -> bool:
    """Whether a call will be left to others as it is. One that is decomposed is judged by its parts, later."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if any(True for _ in viewed(node)) or node.target in _decomposed():
        return False
    return refuse(node, config) is not None


@functools.cache
def _decomposed() -> frozenset[object]:
    return frozenset(default_decompositions())


def set_output(program: ExportedProgram, index: int, node: Node) -> None:
    """Makes ``node`` the program's output at ``index``, of the kind that the old one was."""
    output = program.graph.output_node()
    values = list(output.args[0])
    values[index] = node
    output.args = (tuple(values),)
    spec = program.graph_signature.output_specs[index]
    program.graph_signature.output_specs[index] = OutputSpec(spec.kind, TensorArgument(node.name), spec.target)

"""Constants of one element become literals in the code."""

from __future__ import annotations

import torch
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node

from etcuda.options import BackendConfig
from etcuda.passes.base import graph_modules, graph_pass
from etcuda.passes.graph.calls import insert_call
from etcuda.passes.graph.program_constants import is_state
from etcuda.torch_private import is_fake

aten = torch.ops.aten


@graph_pass(requires=("lower_edge_ops",))
def inline_scalar_constants(program: ExportedProgram, config: BackendConfig) -> int:
    """Replaces tensors without dimensions that never change by calls that make them.

    Before: ``aten.mul.Tensor(x, _lifted_tensor_constant0)``. After: ``aten.mul.Tensor(x, aten.full([], 2.0))``.
    ExecuTorch turns each number in a model into such a tensor; in generated code it is a literal again. Parameters
    are left: they are the model's weights. In the branches of control flow, where a constant is an attribute that
    cannot be given by name at run time, this is what makes them compilable.
    """
    changed = 0
    for module in graph_modules(program):
        for node in list(module.graph.nodes):
            value = _attribute(module, node)
            if module is program.graph_module and node.op == "placeholder":
                value = _constant(program, node)
            if value is not None and value.dim() == 0 and node.users:
                _replace(node, value)
                changed += 1
    return changed


def _constant(program: ExportedProgram, node: Node) -> torch.Tensor | None:
    spec = next(spec for spec in program.graph_signature.input_specs if spec.arg.name == node.name)
    if spec.kind not in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR) or spec.target is None:
        return None
    if is_state(program, spec.target):
        return None
    value = program.state_dict.get(spec.target, program.constants.get(spec.target))
    return value if _is_real(value) else None


def _attribute(module: GraphModule, node: Node) -> torch.Tensor | None:
    if node.op != "get_attr":
        return None
    value = getattr(module, str(node.target), None)
    return value if _is_real(value) else None


def _is_real(value: object) -> bool:
    return isinstance(value, torch.Tensor) and not is_fake(value)


def _replace(node: Node, value: torch.Tensor) -> None:
    first = min(node.users)
    device = node.meta["val"].device if "val" in node.meta else value.device
    literal = insert_call(first, aten.full.default, ([], value.item()), dtype=value.dtype, device=device)
    node.replace_all_uses_with(literal)
    if node.op == "get_attr":
        node.graph.erase_node(node)

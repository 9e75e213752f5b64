"""Moves an exported program to a device that need not exist: its tensors become fake ones there."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export.exported_program import ExportedProgram
from torch.utils import _pytree as pytree

from etcuda.errors import CompileError


@dataclasses.dataclass
class MovedProgram:
    """A module whose tensors are fake tensors on one device, its example inputs, and who is who among constants."""

    module: torch.fx.GraphModule
    inputs: tuple[Any, ...]
    names: dict[int, str]

    def name_of(self, tensor: torch.Tensor) -> str:
        """Fully qualified name of a constant, found by its storage.

        Raises:
            CompileError: the tensor is none of the program's constants.
        """
        found = self.names.get(tensor.untyped_storage()._cdata)
        if found is None:
            raise CompileError(
                f"code generation made a constant of its own, {tuple(tensor.shape)} {tensor.dtype}; expected only "
                "constants of the program. Register the tensor as a buffer of the model."
            )
        return found


def move_to_device(program: ExportedProgram, device: torch.device, tied: dict[str, str]) -> MovedProgram:
    """Rewrites a program in place so that every tensor is a fake one on ``device``.

    Args:
        program: constants on the meta device.
        device: where the code will run; need not exist here.
        tied: constants that are the same view as another one, by name; they become one tensor.
    """
    mode = detect_fake_mode([node.meta["val"] for node in program.graph.nodes if "val" in node.meta])
    if mode is None:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
    mode.allow_non_fake_inputs = True
    names: dict[int, str] = {}
    with mode:
        made: dict[str, torch.Tensor] = {}
        for table in (program.state_dict, program.constants):
            for name, value in table.items():
                if not isinstance(value, torch.Tensor):
                    continue
                first = tied.get(name, name)
                if first not in made:
                    made[first] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
                    names[made[first].untyped_storage()._cdata] = first
                moved = made[first]
                is_parameter = isinstance(value, torch.nn.Parameter)
                table[name] = torch.nn.Parameter(moved, requires_grad=False) if is_parameter else moved
        for graph_module in program.graph_module.modules():
            if isinstance(graph_module, torch.fx.GraphModule):
                _move_graph(graph_module, device)
    module = program.module(check_guards=False)
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    inputs = tuple(values[name] for name in program.graph_signature.user_inputs)
    return MovedProgram(module, inputs, names)


def _move_graph(module: torch.fx.GraphModule, device: torch.device) -> None:
    for node in module.graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), node.meta["val"])
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if not any(argument.name == "device" for argument in node.target._schema.arguments):
            continue
        makes_tensor = not any(isinstance(each.meta.get("val"), torch.Tensor) for each in node.all_input_nodes)
        if node.kwargs.get("device") is not None or makes_tensor:
            node.kwargs = {**node.kwargs, "device": device}
    module.recompile()

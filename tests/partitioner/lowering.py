"""Lowers a program with Inductor up to its list of kernels, without compiling any."""

from __future__ import annotations

from typing import Any

import torch
from torch._inductor import compile_fx, config, ir
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch.export import ExportedProgram

OPTIONS = {
    "always_keep_tensor_constants": True,
    "aot_inductor.link_libtorch": False,
    "compile_threads": 1,
    "cpp.simdlen": 256,
    "cpp.threads": 1,
    "joint_graph_constant_folding": False,
    "shape_padding": False,
}


class _LoweredError(Exception):
    """Ends the compilation once the graph is lowered."""


def library_calls(program: ExportedProgram) -> list[str]:
    """Names, as in AOTInductor's C interface for the CPU, of the library kernels that the program's code would call."""
    found: list[str] = []

    def lower(module: torch.fx.GraphModule, inputs: Any, **_: Any) -> None:
        compile_fx._recursive_post_grad_passes(module, is_inference=True)
        compile_fx.record_original_output_strides(module)
        graph = GraphLowering(
            module,
            example_inputs=inputs,
            shape_env=compile_fx.shape_env_from_inputs(inputs),
            cpp_wrapper=True,
            aot_mode=True,
            is_inference=True,
        )
        with V.set_graph_handler(graph):
            graph.run(*inputs)
        for operation in graph.operations:
            if isinstance(operation, ir.ExternKernel) and not isinstance(operation, ir.MultiOutput):
                found.append(_shim(operation))
        raise _LoweredError

    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [values[name] for name in program.graph_signature.user_inputs]
    with torch.no_grad(), config.patch(OPTIONS):
        try:
            compile_fx.compile_fx_aot(program.module(check_guards=False), inputs, inner_compile=lower)
        except _LoweredError:
            return found
    raise AssertionError("Inductor did not lower the graph")


def _shim(operation: ir.ExternKernel) -> str:
    kernel = getattr(operation, "cpp_kernel_name", None) or type(operation).__name__
    overload = getattr(operation, "op_overload", None)
    if kernel.startswith("aoti_torch_"):
        return str(kernel)
    if not kernel.endswith("::call"):
        return f"aoti_torch_cpu_{kernel.split('::')[-1]}"
    # The generated interface has the overload's name but for the default, and writes to an ``out`` for one in place.
    name, _, which = str(overload).removeprefix("aten.").partition(".")
    suffix = "" if which == "default" else f"_{which}"
    return f"aoti_torch_cpu_{name[:-1]}{suffix}_out" if name.endswith("_") else f"aoti_torch_cpu_{name}{suffix}"

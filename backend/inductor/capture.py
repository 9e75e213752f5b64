"""Drives AOTInductor up to the generated C++ and hands that over: no C++ compiler and no device involved."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch._inductor import codecache, cpu_vec_isa, graph
from torch._inductor.codegen import common
from torch._inductor.graph import GraphLowering

from etcuda.backend.inductor import (
    accesses,
    assembly,
    assumptions,
    branches,
    convolutions,
    early,
    launchers,
    local_buffers,
    loops,
    part_edges,
    pooling,
    random,
    straight,
    templates,
    traces,
)
from etcuda.target import CudaTarget
from etcuda.torch_private import keep_no_stack_traces


@dataclasses.dataclass
class GeneratedConstant:
    """A constant of the generated code: its name there, and the tensor it stood for while tracing."""

    name: str
    tensor: torch.Tensor


@dataclasses.dataclass
class GeneratedCode:
    """What AOTInductor generated for one graph.

    ``cubins`` maps a kernel's name, as the code refers to it, to its binary (cubin, or PTX text for portable targets),
    ``resources`` to what a block of it takes. ``output_strides`` are expressions in the symbols of the graph.
    ``assumptions`` are conditions on them, in sympy's ``srepr``, that hold for the example and must hold at a call.
    """

    wrapper: str
    kernels: str
    constants: list[GeneratedConstant]
    cubins: dict[str, bytes]
    num_kernels: int
    resources: dict[str, launchers.KernelResources] = dataclasses.field(default_factory=dict)
    output_strides: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
    assumptions: list[str] = dataclasses.field(default_factory=list)


def generate(
    module: torch.fx.GraphModule,
    inputs: tuple[Any, ...],
    target: CudaTarget | str,
    allow_tf32: bool,
    progress: Callable[[str, int, int], None],
    strides: Sequence[tuple[Any, ...]] | None = None,
) -> GeneratedCode:
    """Generates C++ (and compiled kernels) for a module whose tensors are all fake.

    Args:
        module: the graph, parameters and buffers as fake tensors on the target's device.
        inputs: fake example inputs.
        target: a GPU target or ``"host"``.
        allow_tf32: let fp32 convolutions use TF32.
        progress: called with a phase name, items done and items in all.
        strides: that the results are to have, expressions in the symbols of the graph; ``None`` leaves them open.
    """
    random.register()
    part_edges.register()
    captured: list[GeneratedCode] = []
    is_host = isinstance(target, str)
    kernels = launchers.KernelStore(target, progress)
    straight.straighten(module)
    num_outputs = len(_outputs(module))

    def capture(
        lowering: GraphLowering,
        wrapper_code: str,
        kernel_code: str,
        _extern_nodes: str | None,
        **_kwargs: Any,
    ) -> list[str]:
        # The names in this order are the order of constants_info_ in the generated code.
        constants = [
            GeneratedConstant(name, tensor)
            for name, tensor in lowering.constants.items()
            if name not in lowering.folded_constants
        ]
        names = getattr(lowering.wrapper_code, "_kernel_name_to_body", {})
        cubins = {} if is_host else kernels.binaries(names)
        count = kernel_code.count('extern "C"') if is_host else len(cubins)
        resources = kernels.resources(names)
        strides = [tuple(output.maybe_get_stride() or ()) for output in lowering.graph_outputs]
        if len(strides) != num_outputs:
            # PyTorch takes all tensors of a kernel that it cannot analyse for written, and gives back those of weights.
            raise RuntimeError(
                f"AOTInductor generated code with {len(strides)} outputs for a graph with {num_outputs}: it takes some "
                "of the weights for written. Report this with the model."
            )
        captured.append(GeneratedCode(wrapper_code, kernel_code, constants, cubins, count, resources, strides))
        return []

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(codecache.AotCodeCompiler, "compile", capture))
        stack.enter_context(mock.patch.object(graph, "is_same_tensor", _views_same_storage))
        stack.enter_context(branches.operands_keep_their_strides())
        stack.enter_context(branches.branches_are_within_the_estimate())
        stack.enter_context(assumptions.choices_assume_nothing())
        assumed = stack.enter_context(assumptions.assumptions_of(inputs))
        stack.enter_context(assembly.assembly_without_operands_writes_nothing())
        stack.enter_context(accesses.each_kernel_analysed_once())
        stack.enter_context(loops.written_values_are_carried())
        stack.enter_context(local_buffers.buffers_written_in_place_are_whole())
        if strides is not None:
            stack.enter_context(part_edges.outputs_have_strides(strides))
        stack.enter_context(pooling.pooled_sizes_are_not_asked())
        stack.enter_context(traces.branches_are_traced_once())
        stack.callback(keep_no_stack_traces())
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))
        stack.enter_context(_fixed_vector_isa())
        options = dict(_OPTIONS)
        if isinstance(target, str):
            options |= _HOST_OPTIONS
        else:
            torch.backends.cudnn.fp32_precision = "tf32" if allow_tf32 else "ieee"
            options |= _CUDA_OPTIONS
            stack.enter_context(early.kernels_are_launched_early(target))
            common.init_backend_registration()
            kernels.register()
            stack.enter_context(convolutions.convolutions_ask_cudnn())
            stack.enter_context(templates.convolutions_without_benchmark(target))
        torch._inductor.aot_compile(module, inputs, options=options)
    if len(captured) != 1:
        raise RuntimeError(f"AOTInductor generated {len(captured)} programs for one graph; expected 1.")
    return dataclasses.replace(captured[0], assumptions=assumed)


def _outputs(module: torch.fx.GraphModule) -> tuple[Any, ...]:
    (given,) = module.graph.output_node().args
    return tuple(given) if isinstance(given, tuple | list) else (given,)


_OPTIONS: dict[str, Any] = {
    "aot_inductor.link_libtorch": False,
    "aot_inductor.package": True,
    "aot_inductor.package_constants_in_so": False,
    "always_keep_tensor_constants": True,
    "compile_threads": 1,
    # Needs the values of constants, which are elsewhere.
    "joint_graph_constant_folding": False,
    "shape_padding": False,
    "max_autotune": False,
    "fx_graph_cache": False,
}
_HOST_OPTIONS: dict[str, Any] = {
    "cpp.threads": 1,
    "cpp.simdlen": 256,
    # Its CPU kernels are library calls that the runtime does not have.
    "cpp.weight_prepack": False,
}
_CUDA_OPTIONS: dict[str, Any] = {
    # A loop's counter is on the host, and so are its kernels: of one element, for any processor.
    "cpp.threads": 1,
    "cpp.simdlen": 1,
    "aot_inductor.embed_kernel_binary": True,
    "aot_inductor.emit_multi_arch_kernel": False,
    "triton.autotune_at_compile_time": True,
}


def _views_same_storage(a: torch.Tensor, b: torch.Tensor) -> bool:
    # Inductor compares data pointers, which fake tensors do not have.
    return bool(
        a.size() == b.size()
        and a.stride() == b.stride()
        and a.dtype == b.dtype
        and a.device == b.device
        and a.storage_offset() == b.storage_offset()
        and a.untyped_storage()._cdata == b.untyped_storage()._cdata
    )


@contextlib.contextmanager
def _fixed_vector_isa() -> Iterator[None]:
    # Inductor would probe this machine's processor with test programs; the code is for any AVX2 machine.
    avx2 = cpu_vec_isa.VecAVX2()
    with (
        mock.patch.object(cpu_vec_isa, "valid_vec_isa_list", return_value=[avx2]),
        mock.patch.object(cpu_vec_isa.VecISA, "__bool__", return_value=True),
    ):
        yield


def default_options() -> dict[str, Any]:
    """A copy of the Inductor options in use, for tests and inspection."""
    return {**_OPTIONS, **_HOST_OPTIONS, **_CUDA_OPTIONS}

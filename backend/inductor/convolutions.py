"""Code for ``etcuda::convolution``: a call of cuDNN, and a launch of the kernel where that does not compute it.

AOTInductor launches the operator's kernel like any other of Triton. Here the launch stands behind a question to the
runtime, ``aoti_torch_cuda_fused_convolution``, whose answer says whether cuDNN has done it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from torch import Tensor
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table, triton_kernel_wrapper_mutation
from torch._inductor import ir, lowering
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from triton.runtime.autotuner import Autotuner

from etcuda.kernels.convolution.triton.convolution import convolution_kernel

SHIM = "aoti_torch_cuda_fused_convolution"

_NUMBERS = ("STRIDE_H", "STRIDE_W", "PADDING_H", "PADDING_W", "DILATION_H", "DILATION_W", "GROUPS", "RELU")


class CudnnConvolution(ir.UserDefinedTritonKernel):
    """A launch that happens where cuDNN does not compute the same."""

    def codegen(self, wrapper: Any) -> None:
        """Writes the call of the shim, and the launch behind it."""
        name = self.get_operation_name()
        given: Any = self.kwargs
        tensors = [
            given[tensor].codegen_reference() if exists else "nullptr"
            for tensor, exists in (
                ("x", True),
                ("weight", True),
                ("bias", given["HAS_BIAS"]),
                ("residual", given["HAS_RESIDUAL"]),
                ("out", True),
            )
        ]
        numbers = ", ".join(str(int(given[each])) for each in _NUMBERS)
        wrapper.writeline(f"const int64_t numbers_{name}[] = {{{numbers}}};")
        wrapper.writeline(f"int32_t is_done_{name} = 0;")
        arguments = ", ".join([*tensors, f"numbers_{name}", f"&is_done_{name}"])
        wrapper.writeline(f"AOTI_TORCH_ERROR_CODE_CHECK({SHIM}({arguments}));")
        wrapper.writeline(f"if (!is_done_{name}) {{")
        super().codegen(wrapper)
        wrapper.writeline("}")


@contextlib.contextmanager
def convolutions_ask_cudnn() -> Iterator[None]:
    """While it is open, launches of the operator's kernel are lowered to ``CudnnConvolution``."""
    lower, run_node = lowering.lowerings[triton_kernel_wrapper_mutation], GraphLowering.run_node

    def run_realized(graph: GraphLowering, node: Any) -> Any:
        if _is_convolution(node):
            # In memory before layouts are asked for: of what is not, Inductor would make a copy for each reader.
            for value in _tensors(node).values():
                graph.env[value].realize()
        return run_node(graph, node)

    def lower_exactly(**given: Any) -> Any:
        node: Any = V.graph.current_node
        if not _is_convolution(node):
            return lower(**given)
        # Inductor promises the order of dimensions alone, and both cuDNN and the kernel count on dense memory: what is
        # concatenated, say, may be a part of a larger tensor. Memory for the result is new, and dense.
        exact = {
            name: ir.ExternKernel.require_exact_strides(given["kwargs"][name], value.meta["val"].stride())
            for name, value in _tensors(node).items()
            if name != "out"
        }
        with mock.patch.object(ir, "UserDefinedTritonKernel", CudnnConvolution):
            return lower(**{**given, "kwargs": given["kwargs"] | exact})

    with (
        mock.patch.dict(lowering.lowerings, {triton_kernel_wrapper_mutation: lower_exactly}),
        mock.patch.object(GraphLowering, "run_node", run_realized),
    ):
        yield


def _is_convolution(node: Any) -> bool:
    if node.target is not triton_kernel_wrapper_mutation:
        return False
    kernel = kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
    # With a number of warps it is wrapped.
    return (kernel.fn if isinstance(kernel, Autotuner) else kernel) is convolution_kernel


def _tensors(node: Any) -> dict[str, Any]:
    """The nodes of a launch's tensors, by the names of its parameters."""
    given = node.kwargs["kwargs"]
    return {name: value for name, value in given.items() if isinstance(getattr(value, "meta", {}).get("val"), Tensor)}

"""Code for ``etcuda::convolution``: a call of cuDNN, and a launch of the kernel where that does not compute it.

AOTInductor launches the operator's kernel like any other of Triton. Here the launch stands behind a question to the
runtime, ``aoti_torch_cuda_fused_convolution``, whose answer says whether cuDNN has done it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table, triton_kernel_wrapper_mutation
from torch._inductor import ir, lowering
from torch._inductor.virtualized import V

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
    original = lowering.lowerings[triton_kernel_wrapper_mutation]

    def lower(**given: Any) -> Any:
        if kernel_side_table.get_kernel(given["kernel_idx"]) is not convolution_kernel:
            return original(**given)
        nodes: Any = V.graph.current_node.kwargs["kwargs"]
        # Inductor promises the order of dimensions alone, and both cuDNN and the kernel count on dense memory: what is
        # concatenated, say, may be a part of a larger tensor. Memory for the result is new, and dense.
        exact = {
            name: value if name == "out" else _exactly(value, nodes[name]) for name, value in given["kwargs"].items()
        }
        with mock.patch.object(ir, "UserDefinedTritonKernel", CudnnConvolution):
            return original(**{**given, "kwargs": exact})

    with mock.patch.dict(lowering.lowerings, {triton_kernel_wrapper_mutation: lower}):
        yield


def _exactly(value: Any, node: Any) -> Any:
    if not isinstance(value, ir.TensorBox):
        return value
    return ir.ExternKernel.require_exact_strides(value, node.meta["val"].stride())

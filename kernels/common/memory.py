"""Memory that kernels can read: dense, aligned, on a GPU."""

from __future__ import annotations

import triton
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.errors import KernelArgumentError
from etcuda.kernels.common.blocks import quantize_kernel


def aligned(x: Tensor, to: int) -> Tensor:
    """x, dense, at an address of which ``to`` is a divisor: a copy where it is not. Constants of programs are at
    one."""
    if type(x) is Tensor and x.device.type != "meta":
        return x if x.data_ptr() % to == 0 else x.clone()
    offset = x.storage_offset() * x.element_size()
    return x if statically_known_true(offset % to == 0) else x.clone()


def require_device(op: str, x: Tensor) -> None:
    """Checks that kernels can read ``x``.

    Raises:
        KernelArgumentError: a real tensor that is on no GPU.
    """
    compiled = isinstance(quantize_kernel, triton.runtime.JITFunction)
    if type(x) is Tensor and x.device.type != "cuda" and compiled:
        raise KernelArgumentError(
            f"{op}: x: expected a tensor on a GPU, got one on {x.device}. Move it, or use the linear operator, which "
            "computes the reference there."
        )


def dense_rows(x: Tensor) -> Tensor:
    """x as [M, K], dense, at an address of which 16 is a divisor: the kernels read 16 bytes at a time."""
    return aligned(x.reshape(-1, x.shape[-1]).contiguous(), 16)

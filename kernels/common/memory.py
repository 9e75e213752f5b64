"""Memory that kernels can read: dense, aligned, on a GPU."""

from __future__ import annotations

from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.errors import KernelArgumentError
from etcuda.kernels.common.blocks import INTERPRETED


def aligned(x: Tensor, to: int) -> Tensor:
    """x, dense, at an address that is a multiple of ``to``; a copy where it is not, but for constants of programs,
    which are aligned where they are loaded."""
    if type(x) is Tensor and x.device.type != "meta":
        return x if x.data_ptr() % to == 0 else x.clone()
    offset = x.storage_offset() * x.element_size()
    return x if statically_known_true(offset % to == 0) else x.clone()


def dense_rows(x: Tensor) -> Tensor:
    """x as [M, K], dense, at an address that is a multiple of 16: a thread loads 16 bytes at a time."""
    return aligned(x.reshape(-1, x.shape[-1]).contiguous(), 16)


def needs_reference(x: Tensor) -> bool:
    """Whether an operator computes its reference: on a real tensor on the CPU, unless Triton interprets the kernels."""
    return type(x) is Tensor and x.device.type == "cpu" and not INTERPRETED


def require_device(op: str, x: Tensor, name: str = "x", instead: str = "an operator that has a reference") -> None:
    """Checks that kernels can read an argument.

    Args:
        op: the operator.
        x: the argument.
        name: its name.
        instead: what computes the same elsewhere.

    Raises:
        KernelArgumentError: it is a real tensor that is on no GPU.
    """
    if type(x) is Tensor and x.device.type != "cuda" and not INTERPRETED:
        raise KernelArgumentError(
            f"{op}: {name}: expected a tensor on a GPU, got one on {x.device}. Move it, or use {instead}."
        )

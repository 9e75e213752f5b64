"""The operator ``etcuda::rms_norm``: a norm that is not quantized, launched early."""

from __future__ import annotations

from torch import Tensor
from torch.library import triton_op

from etcuda.kernels.activations import launch
from etcuda.kernels.activations.check import check_norm
from etcuda.kernels.activations.choose.configs import ActivationConfig
from etcuda.kernels.activations.reference import rms_norm_kept_reference
from etcuda.kernels.common.memory import needs_reference


@triton_op("etcuda::rms_norm", mutates_args=())
def rms_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    eps: float,
    weight_offset: float,
    cast_first: bool,
    keep_h: bool,
    blocks: int,
    num_warps: int,
    pdl: int,
) -> tuple[Tensor, Tensor]:
    """h = x + residual, and y = the RMSNorm of h.

    Args:
        x: and all others as of ``rms_norm_quantize``.

    Returns:
        h and y in the shape and dtype of ``x``; h is [0] where it is not wanted.

    Raises:
        KernelArgumentError: an argument is not one that the operator takes.
    """
    check_norm("rms_norm", x, residual, weight, eps, blocks, num_warps)
    if needs_reference(x):
        h, y = rms_norm_kept_reference(x, residual, weight, eps, weight_offset, cast_first, keep_h)
        return (h.clone() if h is x else h), y
    config = ActivationConfig(blocks, num_warps)
    return launch.rms_norm(x, residual, weight, eps, weight_offset, cast_first, keep_h, config, pdl)


def fake_rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, eps: float, weight_offset: float, cast_first: bool,
    keep_h: bool, blocks: int, num_warps: int, pdl: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Checks the arguments; returns fake results."""
    check_norm("rms_norm", x, residual, weight, eps, blocks, num_warps)
    return launch.new_kept(x, x.shape, keep_h), x.new_empty(x.shape)


rms_norm.register_fake(fake_rms_norm)

"""The operator ``etcuda::convolution``: a convolution, and what follows one in image models, in one kernel."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.library import triton_op

from etcuda.kernels.common.memory import needs_reference
from etcuda.kernels.convolution import launch
from etcuda.kernels.convolution.check import check_arguments
from etcuda.kernels.convolution.configs import ConvolutionConfig
from etcuda.kernels.convolution.reference import convolution_reference


@triton_op("etcuda::convolution", mutates_args=())
def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool,
    tf32: bool,
    block_m: int,
    block_n: int,
    block_k: int,
    num_stages: int,
    num_warps: int,
) -> Tensor:
    """Convolves images, adds a bias and a residual, and clips below 0. Sums are fp32 and rounded once.

    In a compiled program cuDNN computes it where it is installed, and else the kernel does.

    Args:
        x: [N, C, H, W] bfloat16, float16 or float32, dense with channels last.
        weight: [O, KH, KW, C / groups] in the dtype of ``x``, contiguous.
        bias: [O], likewise, or ``None``.
        residual: [N, O, OH, OW] like ``x``, dense with channels last, or ``None``.
        stride: of rows and columns.
        padding: likewise, zeros on either side.
        dilation: likewise.
        groups: of channels, each computed from its own.
        relu: whether numbers below 0 become 0.
        tf32: whether products of float32 may be of TF32.
        block_m: this and what follows as of ``ConvolutionConfig``.
        block_n: see there.
        block_k: see there.
        num_stages: see there.
        num_warps: see there.

    Returns:
        [N, O, OH, OW] in the dtype of ``x``, dense with channels last.

    Raises:
        KernelArgumentError: an argument is not one that the operator takes.
    """
    shape = check_arguments(x, weight, bias, residual, stride, padding, dilation, groups)
    config = ConvolutionConfig(block_m, block_n, block_k, num_stages, num_warps)
    config.check()
    if needs_reference(x):
        return convolution_reference(x, weight, bias, residual, stride, padding, dilation, groups, relu)
    return launch.convolution(
        x, weight, bias, residual, stride, padding, dilation, groups, relu, tf32, shape, config
    )  # fmt: skip


def fake_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], groups: int, relu: bool, tf32: bool, block_m: int, block_n: int,
    block_k: int, num_stages: int, num_warps: int,
) -> Tensor:  # fmt: skip
    """Checks the arguments; returns a fake result."""
    shape = check_arguments(x, weight, bias, residual, stride, padding, dilation, groups)
    ConvolutionConfig(block_m, block_n, block_k, num_stages, num_warps).check()
    return launch.new_result(x, shape)


convolution.register_fake(fake_convolution)

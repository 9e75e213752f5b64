"""The launch of the kernel. Arguments were checked before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from etcuda.kernels.common.pdl import traceable
from etcuda.kernels.convolution.configs import ConvolutionConfig
from etcuda.kernels.convolution.triton.convolution import convolution_kernel


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
    shape: tuple[int, int, int, int],
    config: ConvolutionConfig,
) -> Tensor:
    """[N, O, OH, OW] of ``shape``, channels last."""
    out = new_result(x, shape)
    batch, out_channels, out_height, out_width = shape
    _, rows, columns, _ = weight.shape
    pixels = batch * out_height * out_width
    grid = (
        triton.cdiv(torch.sym_max(pixels, 1), config.block_m),
        triton.cdiv(out_channels // groups, config.block_n),
        groups,
    )
    # The weight stands in for what is absent.
    traceable(x, convolution_kernel)[grid](
        x, weight, weight if bias is None else bias, weight if residual is None else residual, out,
        pixels, x.shape[2], x.shape[3], torch.sym_max(out_height, 1), torch.sym_max(out_width, 1),
        C=x.shape[1], OUT=out_channels, KERNEL_H=rows, KERNEL_W=columns, STRIDE_H=stride[0], STRIDE_W=stride[1],
        PADDING_H=padding[0], PADDING_W=padding[1], DILATION_H=dilation[0], DILATION_W=dilation[1], GROUPS=groups,
        HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, RELU=relu,
        PRECISION="tf32" if tf32 else "ieee", BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
        STAGES=config.num_stages, num_warps=config.num_warps,
    )  # fmt: skip
    return out


def new_result(x: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """Memory for a result [N, O, OH, OW], channels last, on the device of ``x``."""
    _, channels, height, width = shape
    strides = (height * width * channels, 1, width * channels, channels)
    return x.new_empty_strided(shape, strides)

"""What the operator takes, checked alike in eager mode, on fake tensors and at export."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from etcuda.errors import KernelArgumentError
from etcuda.kernels.common.check import expect, expect_same
from etcuda.kernels.convolution.problem import out_size, problem_of, refuse
from etcuda.kernels.formats.base import DTYPES

OP = "convolution"
_DTYPE_NAMES = "bfloat16, float16 or float32"


def check_arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[int, int, int, int]:
    """Checks tensors and numbers; returns the result's shape.

    Raises:
        KernelArgumentError: naming the argument, what was expected and what it is.
    """
    expect(x.dtype in DTYPES, OP, "x", _DTYPE_NAMES, x.dtype)
    for name, tensor in (("x", x), ("weight", weight)):
        expect(tensor.dim() == 4, OP, name, "4 dimensions", list(tensor.shape))
        _expect_alike(name, tensor, x)
    for name, numbers, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        holds = len(numbers) == 2 and all(number >= least for number in numbers)
        expect(holds, OP, name, f"2 numbers of {least} or more", list(numbers))
    expect(isinstance(x.shape[1], int), OP, "x", "a fixed number of channels", list(x.shape))
    fixed = all(isinstance(size, int) for size in weight.shape)
    expect(fixed and min(weight.shape) > 0, OP, "weight", "fixed sizes of 1 or more", list(weight.shape))
    out_channels, rows, columns, channels = weight.shape
    holds = groups > 0 and out_channels % max(groups, 1) == 0
    expect(holds, OP, "groups", f"a divisor of the {out_channels} output channels", groups)
    expect_same(OP, "weight", "last size times groups", channels * groups, x.shape[1])
    expect(weight.is_contiguous(), OP, "weight", "a contiguous tensor", f"strides {weight.stride()}")
    expect(is_channels_last(x), OP, "x", "a dense tensor with channels last", f"strides {x.stride()}")
    sizes = zip(x.shape[2:], (rows, columns), stride, padding, dilation, strict=True)
    height, width = (out_size(*each) for each in sizes)
    if bias is not None:
        expect(bias.dim() == 1, OP, "bias", "one dimension [O]", list(bias.shape))
        expect_same(OP, "bias", "length", bias.shape[0], out_channels)
        expect(bias.is_contiguous(), OP, "bias", "a contiguous tensor", f"strides {bias.stride()}")
        _expect_alike("bias", bias, x)
    if residual is not None:
        expect(residual.dim() == 4, OP, "residual", "4 dimensions", list(residual.shape))
        for name, got, wanted in zip(
            ("batch size", "number of channels", "height", "width"),
            residual.shape,
            (x.shape[0], out_channels, height, width),
            strict=True,
        ):
            expect_same(OP, "residual", name, got, wanted)
        expect(
            is_channels_last(residual),
            OP,
            "residual",
            "a dense tensor with channels last",
            f"strides {residual.stride()}",
        )
        _expect_alike("residual", residual, x)
    reason = refuse(problem_of(x, weight, stride, padding, dilation, groups))
    if reason is not None:
        raise KernelArgumentError(f"{OP}: {reason}. Pad the images, or cut them into parts.")
    return x.shape[0], out_channels, height, width


def is_channels_last(tensor: Tensor) -> bool:
    """Whether a tensor [N, C, H, W] lies densely in memory as [N, H, W, C]."""
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def _expect_alike(name: str, tensor: Tensor, x: Tensor) -> None:
    expect(tensor.dtype == x.dtype, OP, name, f"the dtype of x, {x.dtype}", tensor.dtype)
    expect(tensor.device == x.device, OP, name, f"the device of x, {x.device}", tensor.device)

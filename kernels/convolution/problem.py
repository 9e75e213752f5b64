"""One call in numbers, its floor, and why the kernel does not serve it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from etcuda.kernels.common.registry import Cost
from etcuda.torch_private import hint

# Offsets in an image are 32 bits wide.
_MOST_PER_IMAGE = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class ConvolutionProblem:
    """A convolution of images whose channels are innermost in memory.

    Attributes:
        batch: images.
        height: of an image, and ``width``: pixels.
        channels: of an image.
        out_height: of a result, and ``out_width``: pixels.
        out_channels: of a result.
        taps: pixels that a pixel of the result is computed from.
        groups: of channels, each computed from its own.
        itemsize: bytes of a number.
    """

    batch: int
    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    out_channels: int
    taps: int
    groups: int = 1
    itemsize: int = 2

    @property
    def pixels(self) -> int:
        """Of all results: rows of the product."""
        return self.batch * self.out_height * self.out_width

    @property
    def depth(self) -> int:
        """Numbers that a number of a result is a sum of."""
        return self.taps * self.channels // self.groups


def out_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Pixels of a result along a dimension, from ``size`` of an image, which may be symbolic."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def problem_of(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> ConvolutionProblem:
    """A call of the operator in numbers; dynamic sizes by their hints."""
    batch, channels, height, width = map(hint, x.shape)
    out_channels, *kernel = (int(size) for size in weight.shape[:3])
    numbers = zip((height, width), kernel, stride, padding, dilation, strict=True)
    rows, columns = (out_size(*each) for each in numbers)
    return ConvolutionProblem(
        batch, height, width, channels, rows, columns, out_channels, kernel[0] * kernel[1], groups, x.dtype.itemsize
    )


def refuse(problem: ConvolutionProblem) -> str | None:
    """Why the kernel does not serve the problem; ``None`` if it does."""
    if problem.out_height <= 0 or problem.out_width <= 0:
        return f"a result has at least one pixel, got {problem.out_height} x {problem.out_width}"
    image = problem.height * problem.width * problem.channels
    if image > _MOST_PER_IMAGE:
        return f"an image has at most {_MOST_PER_IMAGE} numbers, got {image}"
    return None


def cost(problem: ConvolutionProblem) -> Cost:
    """Images, weights and results are loaded or stored once; two operations for every product."""
    images = problem.batch * problem.height * problem.width * problem.channels
    results = problem.pixels * problem.out_channels
    weights = problem.out_channels * problem.depth
    return Cost((images + weights + results) * problem.itemsize, 2 * results * problem.depth)

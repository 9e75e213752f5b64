"""Windows that slide along one dimension."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
# A number, symbolic or not; PyTorch declares no arithmetic of tensors with symbolic ones.
Size = Any


@dataclasses.dataclass(frozen=True)
class Window:
    """The windows along one dimension of ``size`` elements.

    Attributes:
        padding: elements in front of the first and behind the last.
        count: how many windows there are.
    """

    size: Size
    length: int
    stride: int
    padding: int
    dilation: int
    count: Size

    @property
    def behind(self) -> Size:
        """Elements that padding must add behind the last for the last window to be whole; below 0, it drops some."""
        return (self.count - 1) * self.stride + (self.length - 1) * self.dilation + 1 - self.size - self.padding


def listed(value: Any, dims: int) -> list[int]:
    """One number for each of ``dims`` dimensions."""
    values = [value] if isinstance(value, int) else list(value)
    return values * (dims if len(values) == 1 else 1)


def windows_of(
    sizes: Sequence[Size],
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
) -> list[Window]:
    """The windows of a pooling operator, a list entry per spatial dimension."""
    dims = len(sizes)
    lengths = listed(kernel, dims)
    strides = listed(stride, dims) if not isinstance(stride, list | tuple) or stride else lengths
    paddings, dilations = listed(padding, dims), listed(dilation, dims)
    return [
        Window(*numbers, _count(*numbers, ceil_mode))
        for numbers in zip(sizes, lengths, strides, paddings, dilations, strict=True)
    ]


def _count(size: Size, length: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> Size:
    room = size + 2 * padding - dilation * (length - 1) - 1
    if not ceil_mode:
        return room // stride + 1
    count = (room + stride - 1) // stride + 1
    # The last window starts inside the input or the padding in front of it. It does by itself unless the stride is
    # longer than what may hang over.
    if isinstance(count, int):
        return count - 1 if (count - 1) * stride >= size + padding else count
    starts = (size + padding - 1) // stride + 1
    return torch.sym_min(count, starts)


def slide(x: Tensor, dim: int, window: Window, fill: float | int | bool) -> Tensor:
    """``x`` (..., size, ...) as (..., count, ..., length): the windows' elements in a new last dimension.

    Args:
        x: any tensor.
        dim: negative.
        window: its ``size`` is that of ``dim``.
        fill: the value of what is padded.
    """
    if window.padding or not isinstance(window.behind, int) or window.behind > 0:
        behind = window.behind if isinstance(window.behind, int) else torch.sym_max(window.behind, 0)
        x = aten.constant_pad_nd.default(x, [0, 0] * (-dim - 1) + [window.padding, max(behind, 0)], fill)
    reach = (window.length - 1) * window.dilation + 1
    x = x.unfold(dim, reach, window.stride)
    x = x.narrow(dim - 1, 0, window.count)
    return x[..., :: window.dilation] if window.dilation > 1 else x

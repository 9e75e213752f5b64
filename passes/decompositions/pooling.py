"""Average and maximum of sliding windows, one dimension after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from etcuda.passes.decompositions.record import Arguments, Decomposition, accumulator
from etcuda.passes.decompositions.windows import Window, listed, slide, windows_of

aten = torch.ops.aten

_UNROLLED = 25  # elements of a window for which Inductor generates code by itself


def avg_pool(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None = None,
    *,
    dims: int,
) -> Tensor:
    """Sums along each of the last ``dims`` dimensions, then one division."""
    windows = windows_of(x.shape[-dims:], kernel_size, stride, padding, 1, ceil_mode)
    sums = x.to(accumulator(x.dtype))
    for dim, window in zip(range(-dims, 0), windows, strict=True):
        sums = slide(sums, dim, window, 0).sum(-1)
    if divisor_override is not None:
        return (sums / divisor_override).to(x.dtype)
    for dim, window in zip(range(-dims, 0), windows, strict=True):
        lengths = _lengths(window, count_include_pad, x.device).to(sums.dtype)
        sums = sums / lengths.reshape(-1, *[1] * (-dim - 1))
    return sums.to(x.dtype)


def _lengths(window: Window, with_padding: bool, device: torch.device) -> Tensor:
    """[count]: how many elements each window has, of the input and, if asked for, of the padding."""
    first = torch.arange(window.count, device=device) * window.stride - window.padding
    end = first + window.length
    if with_padding:
        return end.clamp_max(window.size + window.padding) - first
    return end.clamp_max(window.size) - first.clamp_min(0)


def max_pool(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    *,
    dims: int,
) -> tuple[Tensor, Tensor]:
    """The greatest element of each window, and its place in the flattened last ``dims`` dimensions.

    Along the last dimension first, so that the first of equal elements is found, as in eager.
    """
    windows = windows_of(x.shape[-dims:], kernel_size, stride, padding, dilation, ceil_mode)
    lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    found: Tensor | None = None
    step: Any = 1
    for dim, window in reversed(list(zip(range(-dims, 0), windows, strict=True))):
        x, at = slide(x, dim, window, lowest).max(-1)
        starts = torch.arange(window.count, device=x.device) * window.stride - window.padding
        here = at * window.dilation + starts.reshape(-1, *[1] * (-dim - 1))
        if found is None:
            found = here
        else:
            inner = slide(found, dim, window, 0)
            found = here * step + inner.gather(-1, at.unsqueeze(-1)).squeeze(-1)
        step = step * window.size
    assert found is not None
    return x, found


def _refuse_dtype(given: Arguments) -> str | None:
    dtype = given["self"].dtype
    return None if dtype.is_floating_point else f"average pooling takes floating dtypes, got {dtype}"


def _average(op: torch._ops.OpOverload, dims: int) -> Decomposition:
    def formula(*given: Any) -> Tensor:
        return avg_pool(*given, dims=dims)

    return Decomposition((op,), formula, _is_large(dims), _refuse_dtype)


def _maximum(op: torch._ops.OpOverload, dims: int) -> Decomposition:
    def formula(*given: Any) -> tuple[Tensor, Tensor]:
        return max_pool(*given, dims=dims)

    return Decomposition((op,), formula, _is_large(dims))


def _is_large(dims: int) -> Callable[[Arguments], bool]:
    def is_large(given: Arguments) -> bool:
        return math.prod(listed(given["kernel_size"], dims)) > _UNROLLED

    return is_large


DECOMPOSITIONS = (
    _average(aten.avg_pool1d.default, 1),
    _average(aten.avg_pool2d.default, 2),
    _average(aten.avg_pool3d.default, 3),
    _maximum(aten.max_pool2d_with_indices.default, 2),
    _maximum(aten.max_pool3d_with_indices.default, 3),
)

"""Resizing with a filter that grows with the scale, so that all of the input counts.

The windows and filters are those of Pillow's resize, as PyTorch has them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from etcuda.passes.decompositions.record import Arguments, Decomposition, accumulator, existing
from etcuda.passes.decompositions.windows import Size

aten = torch.ops.aten

_CUBIC_A = -0.5


def _triangle(t: Tensor) -> Tensor:
    return (1 - t.abs()).clamp_min(0)


def _cubic(t: Tensor) -> Tensor:
    t = t.abs()
    near = ((_CUBIC_A + 2) * t - (_CUBIC_A + 3)) * t * t + 1
    far = ((_CUBIC_A * t - 5 * _CUBIC_A) * t + 8 * _CUBIC_A) * t - 4 * _CUBIC_A
    return torch.where(t < 1, near, torch.where(t < 2, far, 0))


def _lanczos(t: Tensor) -> Tensor:
    return torch.where(t.abs() < 3, torch.sinc(t) * torch.sinc(t / 3), 0)


def resize(
    x: Tensor,
    output_size: list[Size],
    align_corners: bool,
    scale_h: float | None,
    scale_w: float | None,
    *,
    radius: int,
    kernel: Callable[[Tensor], Tensor],
) -> Tensor:
    """``x`` (N, C, H, W), the width first, as in eager.

    Args:
        radius: half the filter's width at a scale of 1, in elements.
        kernel: the filter.
    """
    result = x.to(accumulator(x.dtype))
    for dim, count, given in ((-1, output_size[1], scale_w), (-2, output_size[0], scale_h)):
        result = _resize_dim(result, dim, count, align_corners, given, radius, kernel)
    return result.to(x.dtype)


def _resize_dim(
    x: Tensor,
    dim: int,
    count: Size,
    align_corners: bool,
    given: float | None,
    radius: int,
    kernel: Callable[[Tensor], Tensor],
) -> Tensor:
    size = x.shape[dim]
    scale, taps = _scale(x, size, count, align_corners, given, radius)
    at_least_1 = scale.clamp_min(1)
    centers = scale * (torch.arange(count, device=x.device, dtype=x.dtype) + 0.5)
    support = radius * at_least_1
    first = (centers - support + 0.5).to(torch.int64).clamp_min(0)
    length = (centers + support + 0.5).to(torch.int64).clamp_max(size) - first
    offsets = torch.arange(taps, device=x.device)
    places = first.unsqueeze(-1) + offsets
    weights = kernel((places - centers.unsqueeze(-1) + 0.5) / at_least_1)
    weights = torch.where(offsets < length.unsqueeze(-1), weights, 0)
    weights = weights / weights.sum(-1, keepdim=True)
    index = places.clamp_max(size - 1)
    elements = aten._unsafe_index.Tensor(x.movedim(dim, -1), [*[None] * (x.dim() - 1), index])
    result: Tensor = (elements * weights).sum(-1).movedim(-1, dim)
    return result


def _scale(
    x: Tensor, size: Size, count: Size, align_corners: bool, given: float | None, radius: int
) -> tuple[Tensor, Size]:
    """Elements of the input for one of the output, of no dimensions; a bound of the elements under the filter."""
    if align_corners:
        if isinstance(count, int) and count == 1:
            return torch.zeros((), dtype=x.dtype, device=x.device), 2 * radius + 1
        size, count = size - 1, count - 1
    elif given is not None and given > 0:
        scale = 1 / given
        return torch.full((), scale, dtype=x.dtype, device=x.device), 2 * math.ceil(radius * max(scale, 1)) + 1
    half = (radius * torch.sym_max(size, count) + count - 1) // count
    numbers = (torch.full((), number, dtype=x.dtype, device=x.device) for number in (size, count))
    return torch.div(*numbers), 2 * half + 1


def _refuse_dtype(given: Arguments) -> str | None:
    dtype = given["self"].dtype
    return None if dtype.is_floating_point else f"antialiased resizing takes floating dtypes, got {dtype}"


DECOMPOSITIONS = tuple(
    Decomposition(
        existing(aten, f"_upsample_{name}2d_aa"),
        functools.partial(resize, radius=radius, kernel=kernel),
        refuse=_refuse_dtype,
    )
    for name, radius, kernel in (("bilinear", 1, _triangle), ("bicubic", 2, _cubic), ("lanczos", 3, _lanczos))
)

"""Sampling of images and volumes at given places.

The definition is that of ``torch.nn.functional.grid_sample``; the cubic kernel is that of Keys, "Cubic convolution
interpolation for digital image processing", 1981, with a = -0.75.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from etcuda.passes.decompositions.record import Decomposition, accumulator, existing
from etcuda.passes.decompositions.windows import Size

aten = torch.ops.aten

_BILINEAR, _NEAREST, _BICUBIC = 0, 1, 2
_ZEROS, _BORDER, _REFLECTION = 0, 1, 2
_CUBIC_A = -0.75


def grid_sampler(x: Tensor, grid: Tensor, mode: int, padding: int, align_corners: bool) -> Tensor:
    """``x`` (N, C, *sizes), ``grid`` (N, *places, dims), its last dimension from the last of ``sizes`` to the first."""
    sizes = x.shape[2:]
    dtype = accumulator(x.dtype)
    places = [
        _unnormalize(grid[..., len(sizes) - 1 - dim].to(dtype), size, align_corners) for dim, size in enumerate(sizes)
    ]
    settle = [functools.partial(_settle, size=size, padding=padding, align=align_corners) for size in sizes]
    taps: list[list[tuple[Tensor, Tensor | None]]]
    if mode == _NEAREST:
        taps = [[(each(place).round(), None)] for each, place in zip(settle, places, strict=True)]
    elif mode == _BILINEAR:
        taps = [_linear_taps(each(place)) for each, place in zip(settle, places, strict=True)]
    else:
        taps = [_cubic_taps(place, each) for each, place in zip(settle, places, strict=True)]
    result: Tensor | None = None
    for corner in itertools.product(*taps):
        value, inside = _read(x, [place for place, _ in corner])
        value = value.to(dtype)
        for _, weight in corner:
            value = value if weight is None else value * weight.unsqueeze(1)
        # Last, for a weight of a place that is no number is none either.
        value = torch.where(inside, value, 0)
        result = value if result is None else result + value
    assert result is not None
    return result.to(x.dtype)


def _unnormalize(coordinates: Tensor, size: Size, align_corners: bool) -> Tensor:
    places: Tensor = (coordinates + 1) / 2 * (size - 1) if align_corners else ((coordinates + 1) * size - 1) / 2
    return places


def _settle(places: Tensor, size: Size, padding: int, align: bool) -> Tensor:
    """Places outside, where padding says that they are read."""
    if padding == _ZEROS:
        return places
    if padding == _REFLECTION:
        places = _reflect(places, 0.0, size - 1) if align else _reflect(places, -0.5, size)
    return places.clamp_min(0).clamp_max(size - 1)


def _reflect(places: Tensor, low: float, span: Size) -> Tensor:
    if isinstance(span, int) and span == 0:
        return torch.zeros_like(places)
    distance = (places - low).abs()
    rest = torch.fmod(distance, span)
    flips = torch.fmod((distance / span).floor(), 2)
    reflected = torch.where(flips == 0, rest + low, span + low - rest)
    # A span of 0, where the size is dynamic, leaves no number.
    return reflected if isinstance(span, int) else torch.where(reflected.isnan() & ~places.isnan(), 0, reflected)


def _linear_taps(places: Tensor) -> list[tuple[Tensor, Tensor | None]]:
    first = places.floor()
    part = places - first
    return [(first, 1 - part), (first + 1, part)]


def _cubic_taps(places: Tensor, settle: Callable[[Tensor], Tensor]) -> list[tuple[Tensor, Tensor | None]]:
    first = places.floor()
    part = places - first
    weights = (_far(part + 1), _near(part), _near(1 - part), _far(2 - part))
    return [(settle(first + (tap - 1)), weight) for tap, weight in enumerate(weights)]


def _near(t: Tensor) -> Tensor:
    return ((_CUBIC_A + 2) * t - (_CUBIC_A + 3)) * t * t + 1


def _far(t: Tensor) -> Tensor:
    return ((_CUBIC_A * t - 5 * _CUBIC_A) * t + 8 * _CUBIC_A) * t - 4 * _CUBIC_A


def _read(x: Tensor, places: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(N, C, *places): the elements; (N, 1, *places): whether a place is inside. One outside, or no number, is not."""
    batch, channels, *sizes = x.shape
    inside: Tensor | None = None
    for place, size in zip(places, sizes, strict=True):
        each = (place >= 0) & (place <= size - 1)
        inside = each if inside is None else inside & each
    assert inside is not None
    index: list[Tensor] = [
        torch.arange(batch, device=x.device).reshape(-1, *[1] * (len(sizes) + 1)),
        torch.arange(channels, device=x.device).reshape(-1, *[1] * len(sizes)),
    ]
    index += [torch.where(inside, place, 0).to(torch.int64).unsqueeze(1) for place in places]
    return aten._unsafe_index.Tensor(x, index), inside.unsqueeze(1)


DECOMPOSITIONS = (Decomposition(existing(aten, "grid_sampler_2d", "grid_sampler_3d"), grid_sampler),)

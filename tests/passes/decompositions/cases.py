"""Calls of operators that formulas serve, with the arguments on which formulas depend."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    call: Callable[..., Any]
    inputs: tuple[Tensor, ...]


def numbers(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator)


LINE, IMAGE, VOLUME = numbers(2, 3, 41), numbers(2, 3, 19, 23), numbers(2, 3, 9, 11, 13)
PLACES = numbers(2, 5, 7, 2)
PLACES_3D = numbers(2, 5, 4, 3, 3)
_INPUT = {1: LINE, 2: IMAGE, 3: VOLUME}
_AVG = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_ADAPTIVE_AVG = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
_ADAPTIVE_MAX = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}


def pooling() -> Iterator[Case]:
    for dims, kernel, stride, padding, ceil_mode, with_padding in (
        (1, 30, 3, 4, True, False),
        (1, 27, 1, 0, False, True),
        (2, 6, 1, 0, False, True),
        (2, 7, 3, 3, True, False),
        (2, 7, 3, 3, True, True),
        (2, (3, 13), (2, 1), (1, 6), False, True),
        (3, 3, 2, 1, False, True),
        (3, (2, 5, 4), 3, (1, 2, 2), True, False),
    ):
        name = f"avg_pool{dims}d {kernel} {stride} {padding} {ceil_mode} {with_padding}"
        arguments = (kernel, stride, padding, ceil_mode, with_padding)
        yield Case(name, lambda x, f=_AVG[dims], a=arguments: f(x, *a), (_INPUT[dims],))
    yield Case("avg_pool2d divisor", lambda x: F.avg_pool2d(x, (7, 5), (2, 3), divisor_override=11), (IMAGE,))
    yield Case("avg_pool2d, no batch", lambda x: F.avg_pool2d(x[0], (7, 5), (2, 3)), (IMAGE,))
    yield Case("lp_pool2d", lambda x: F.lp_pool2d(x, 2.0, 7, 2), (IMAGE,))
    for dims, kernel, stride, padding, dilation, ceil_mode in (
        (1, 30, 2, 4, 1, True),
        (1, 18, 2, 4, 2, False),
        (2, 3, 2, 1, 1, True),
        (2, 7, 2, 3, 1, True),
        (2, (6, 7), (1, 2), (1, 3), (2, 3), False),
        (3, 3, 2, 1, 1, False),
        (3, 4, 2, 1, 2, True),
    ):
        name = f"max_pool{dims}d {kernel} {stride} {padding} {dilation} {ceil_mode}"
        arguments = (kernel, stride, padding, dilation, ceil_mode, True)
        yield Case(name, lambda x, f=_MAX[dims], a=arguments: f(x, *a), (_INPUT[dims],))
    # Few values, so that the first of equal ones counts.
    yield Case("max_pool2d, equal elements", lambda x: F.max_pool2d(x.round(), 7, 3, 2, return_indices=True), (IMAGE,))
    yield Case("max_pool2d, no batch", lambda x: F.max_pool2d(x[0], 7, 2, return_indices=True), (IMAGE,))


def adaptive_pooling() -> Iterator[Case]:
    sizes: tuple[tuple[int, Any], ...] = (
        *((1, each) for each in (1, 7, 50)),
        *((2, each) for each in ((1, 1), (2, 3), (7, 5), (30, None))),
        *((3, each) for each in ((1, 1, 1), (3, 2, 5), (9, 1, 4), (12, 12, 12))),
    )
    for dims, size in sizes:
        average, maximum = _ADAPTIVE_AVG[dims], _ADAPTIVE_MAX[dims]
        yield Case(f"adaptive_avg_pool{dims}d {size}", lambda x, f=average, s=size: f(x, s), (_INPUT[dims],))
        name = f"adaptive_max_pool{dims}d {size}"
        yield Case(name, lambda x, f=maximum, s=size: f(x, s, return_indices=True), (_INPUT[dims],))


def sampling() -> Iterator[Case]:
    modes, paddings = ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")
    for mode, padding, align in itertools.product(modes, paddings, (False, True)):
        for dims, inputs in ((2, (IMAGE, PLACES)), (3, (VOLUME, PLACES_3D))):
            if dims == 3 and mode == "bicubic":
                continue
            name = f"grid_sample {dims}d {mode} {padding} {align}"
            yield Case(name, lambda x, g, a=(mode, padding, align): F.grid_sample(x, g, *a), inputs)
    # So many reflections that an 8-bit counter would be full.
    far = (IMAGE, (PLACES * 400).round() / 4)
    yield Case("grid_sample far", lambda x, g: F.grid_sample(x, g, "bilinear", "reflection", True), far)
    yield Case("affine_grid", lambda t: F.affine_grid(t, [2, 3, 4, 5], False), (numbers(2, 2, 3),))


def resizing() -> Iterator[Case]:
    for mode, align in itertools.product(("bilinear", "bicubic"), (False, True)):
        for change in ({"size": (8, 31)}, {"size": (40, 10)}, {"size": (1, 5)}, {"scale_factor": (0.4, 1.3)}):
            arguments = {**change, "mode": mode, "align_corners": align, "antialias": True}
            name = f"antialiased {mode} {align} {change}"
            yield Case(name, lambda x, a=arguments: F.interpolate(x, **a), (IMAGE,))
    plain = {1: ("nearest", "nearest-exact", "linear"), 2: ("nearest", "nearest-exact", "bilinear", "bicubic")}
    for dims, modes in (*plain.items(), (3, ("nearest", "nearest-exact", "trilinear"))):
        for mode, align in itertools.product(modes, (False, True)):
            if align and "nearest" in mode:
                continue
            for change in ({"size": (8, 31, 17)[:dims]}, {"scale_factor": (1.7, 0.6, 2.0)[:dims]}):
                arguments = {**change, "mode": mode, "align_corners": None if "nearest" in mode else align}
                name = f"resize {dims}d {mode} {align} {change}"
                yield Case(name, lambda x, a=arguments: F.interpolate(x, **a), (_INPUT[dims],))


def spatial_cases() -> list[Case]:
    return [*pooling(), *adaptive_pooling(), *sampling(), *resizing()]

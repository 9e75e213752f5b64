"""Cumulative operators of any length.

The runtime has them on the host. On the GPU Inductor generates those of up to 32 elements, whatever the strides; for
longer ones it may take a workspace that the runtime does not clear, or a library. These are combined with what stands
1, 2, 4, ... elements before (Hillis and Steele, "Data parallel algorithms", 1986). The order of additions is fixed.
There are as many steps as the bound of a dynamic length takes: their number at the example would be fixed by the way in
places.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from etcuda.torch_private import bounds, generates_scans

aten = torch.ops.aten

_DIRECT = 32

Combine = Callable[[Tensor, Tensor], Tensor]


def cumsum(host: bool, self: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Sums so far."""
    return _scan(host, self, dim, dtype, aten.cumsum.default, torch.add, 0)


def cumprod(host: bool, self: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Products so far."""
    return _scan(host, self, dim, dtype, aten.cumprod.default, torch.mul, 1)


def logcumsumexp(host: bool, self: Tensor, dim: int) -> Tensor:
    """Logarithms of sums of exponentials so far."""
    return _scan(host, self, dim, self.dtype, aten.logcumsumexp.default, torch.logaddexp, -math.inf)


def cummax(host: bool, self: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The greatest so far and the last place that has it."""
    return running_extreme(host, self, dim, greatest=True)


def cummin(host: bool, self: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The least so far and the last place that has it."""
    return running_extreme(host, self, dim, greatest=False)


def _scan(
    host: bool, self: Tensor, dim: int, dtype: torch.dtype | None, op: Any, combine: Combine, identity: float
) -> Tensor:
    if dtype is None:
        dtype = self.dtype if self.is_floating_point() else torch.int64
    x = self.to(dtype)
    if self.dim() == 0 or _is_empty(self):
        return x.clone()
    # 16-bit floats are rounded once, at the end; the runtime sees to that itself.
    wide = x.float() if dtype in (torch.float16, torch.bfloat16) and not host else x
    # Without it, sums of integers would be int64.
    options = {} if dtype.is_floating_point else {"dtype": dtype}
    if host or _is_generated(x.shape[dim]):
        found: Tensor = op(wide, dim, **options).to(dtype)
        return found
    return _by_doubling(wide.movedim(dim, -1), combine, identity).movedim(-1, dim).to(dtype).contiguous()


def _by_doubling(x: Tensor, combine: Combine, identity: float) -> Tensor:
    """(..., n): each combined with all before it."""
    length, step = x.shape[-1], 1
    while step < _bound(length):
        before: Tensor = aten.constant_pad_nd.default(x, [step, 0], identity)[..., :length]
        x = combine(before, x)
        step *= 2
    return x


def running_extreme(host: bool, self: Tensor, dim: int, greatest: bool) -> tuple[Tensor, Tensor]:
    """The greatest or least element so far, and the last place that has it; a NaN stays.

    Args:
        host: whether the runtime scans.
        self: (..., n, ...), of any dtype.
        dim: the dimension of n.
        greatest: or the least.
    """
    if self.dim() == 0 or _is_empty(self):
        return self.clone(), torch.zeros_like(self, dtype=torch.int64)
    op = aten.cummax.default if greatest else aten.cummin.default
    if host:
        found: tuple[Tensor, Tensor] = op(self, dim)
        return found
    x = self.to(torch.int8) if self.dtype == torch.bool else self
    if _is_generated(x.shape[dim]):
        values, indices = op(x, dim)
    else:
        values, indices = _extreme_by_doubling(x.movedim(dim, -1), greatest)
        values, indices = values.movedim(-1, dim).contiguous(), indices.movedim(-1, dim).contiguous()
    return values.to(self.dtype), indices


def _extreme_by_doubling(x: Tensor, greatest: bool) -> tuple[Tensor, Tensor]:
    """As ``_by_doubling``."""
    length = x.shape[-1]
    place = torch.arange(length, device=x.device)
    values, places = x, place.expand(x.shape)
    step = 1
    while step < _bound(length):
        before = aten.constant_pad_nd.default(values, [step, 0], 0)[..., :length]
        place_before = aten.constant_pad_nd.default(places, [step, 0], 0)[..., :length]
        beats = before > values if greatest else before < values
        keeps = (place >= step) & ~values.isnan() & (beats | before.isnan())
        values, places = torch.where(keeps, before, values), torch.where(keeps, place_before, places)
        step *= 2
    return values, places


def _is_generated(length: int | torch.SymInt) -> bool:
    return generates_scans() and _bound(length) <= _DIRECT


def _bound(size: int | torch.SymInt) -> int:
    bound = bounds(size)[1]
    assert bound is not None  # the rule asks for it
    return bound


def _is_empty(x: Tensor) -> bool:
    return any(isinstance(size, int) and size == 0 for size in x.shape)

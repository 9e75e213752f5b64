"""Sorts, and selection by a sort."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from etcuda.passes.library.merge_sort import RUN, first_of, order_of
from etcuda.passes.library.scans import running_extreme
from etcuda.torch_private import bounds

aten = torch.ops.aten

Pair = tuple[Tensor, Tensor]

# A tournament halves what is left at least.
_TOURNAMENT = RUN // 2


def sort(host: bool, self: Tensor, dim: int = -1, descending: bool = False, stable: bool | None = None) -> Pair:
    """Values and indices, in a stable order. The runtime sorts on the host; on the GPU a short row is one kernel."""
    if self.dim() == 0:
        return self.clone(), torch.zeros_like(self, dtype=torch.int64)
    if host:
        found: Pair = aten.sort.stable(self.contiguous(), stable=True, dim=dim, descending=descending)
        return found
    bound = _bound(self.shape[dim])
    if bound <= RUN:
        if self.dtype == torch.bool:
            values, indices = aten.sort.stable(self.to(torch.int8), stable=True, dim=dim, descending=descending)
            return values.to(torch.bool), indices
        return aten.sort.stable(self, stable=True, dim=dim, descending=descending)  # type: ignore[no-any-return]
    rows, shape = _rows(self, dim)
    return _taken(rows, order_of(rows, descending, bound), shape, dim)


def topk(host: bool, self: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Pair:
    """In order whether asked for or not; of equal values the first."""
    if self.dim() == 0:
        # k is 0 or 1, and the result a number in both cases.
        return self.clone(), torch.zeros_like(self, dtype=torch.int64)
    bound = _bound(self.shape[dim])
    if host or bound <= RUN or k > _TOURNAMENT or k == 0:
        values, indices = sort(host, self, dim, largest)
        return values.narrow(dim, 0, k).clone(), indices.narrow(dim, 0, k).clone()
    rows, shape = _rows(self, dim)
    return _taken(rows, first_of(rows, k, largest, bound), shape, dim)


def _rows(x: Tensor, dim: int) -> tuple[Tensor, list[int]]:
    """``x`` as rows along ``dim``, and the shape of the other dimensions."""
    moved = x.movedim(dim, -1)
    others = list(moved.shape[:-1])
    return moved.reshape(math.prod(others), x.shape[dim]), others


def _taken(rows: Tensor, indices: Tensor, others: list[int], dim: int) -> Pair:
    values = rows.gather(-1, indices)
    shape = [*others, indices.shape[-1]]
    return values.reshape(shape).movedim(-1, dim).contiguous(), indices.reshape(shape).movedim(-1, dim).contiguous()


def _bound(size: int | torch.SymInt) -> int:
    bound = bounds(size)[1]
    assert bound is not None  # the rule asks for it
    return bound


def kthvalue(host: bool, self: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Pair:
    """The k-th smallest, counted from 1."""
    values, indices = sort(host, self, dim)
    if self.dim() == 0:
        return values, indices
    place = torch.full_like(indices.narrow(dim, 0, 1), k - 1)
    return _at(values, indices, place, dim, keepdim)


def median(host: bool, self: Tensor, dim: int | None = None, keepdim: bool = False) -> Pair | Tensor:
    """The lower of two in the middle; NaN where there is one."""
    return _median(host, self, dim, keepdim, skip_nan=False)


def nanmedian(host: bool, self: Tensor, dim: int | None = None, keepdim: bool = False) -> Pair | Tensor:
    """The median of what is not NaN."""
    return _median(host, self, dim, keepdim, skip_nan=True)


def _median(host: bool, self: Tensor, dim: int | None, keepdim: bool, skip_nan: bool) -> Pair | Tensor:
    if dim is None:
        if _is_empty(self):
            # What torch returns, though no integer is the median of none.
            return torch.full(
                [], math.nan if self.is_floating_point() else torch.iinfo(self.dtype).min, dtype=self.dtype
            )
        found = _median(host, self.reshape(-1), 0, False, skip_nan)
        return found[0].clone()
    values, indices = sort(host, self, dim)
    if self.dim() == 0:
        return values, indices
    size = self.shape[dim]
    nans = values.isnan().sum(dim, keepdim=True)
    if skip_nan:
        place = ((size - nans - 1) // 2).clamp(min=0)
    else:
        place = torch.where(nans > 0, size - nans, torch.full_like(nans, (size - 1) // 2))
    return _at(values, indices, place, dim, keepdim)


def mode(host: bool, self: Tensor, dim: int = -1, keepdim: bool = False) -> Pair:
    """The least of the most frequent values: the first of the longest runs of equal ones."""
    values, indices = sort(host, self, dim)
    if self.dim() == 0:
        return values, indices
    values, indices = values.movedim(dim, -1), indices.movedim(dim, -1)
    size = values.shape[-1]
    place = torch.arange(size, device=self.device).expand(values.shape)
    differs = values[..., 1:] != values[..., :-1]
    start = torch.where(aten.constant_pad_nd.default(differs, [1, 0], True), place, 0)
    length = place - running_extreme(host, start, -1, greatest=True)[0]
    best = length.argmax(-1, keepdim=True)
    found, where = values.gather(-1, best), indices.gather(-1, best)
    return _with_dim(found.movedim(-1, dim), dim, keepdim), _with_dim(where.movedim(-1, dim), dim, keepdim)


def _at(values: Tensor, indices: Tensor, place: Tensor, dim: int, keepdim: bool) -> Pair:
    found, where = values.gather(dim, place), indices.gather(dim, place)
    return _with_dim(found, dim, keepdim), _with_dim(where, dim, keepdim)


def _with_dim(x: Tensor, dim: int, keepdim: bool) -> Tensor:
    return x.contiguous() if keepdim else x.squeeze(dim).contiguous()


def _is_empty(x: Tensor) -> bool:
    return any(isinstance(size, int) and size == 0 for size in x.shape)

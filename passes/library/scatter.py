"""Reductions through indices, along a dimension."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.passes.library.search import search
from etcuda.passes.library.sorting import sort
from etcuda.passes.library.sums import ADDED, add_through

aten = torch.ops.aten

# Bits of a plain write, for dtypes that generated code for the GPU leaves to a library.
_BITS = {torch.int64: torch.float64, torch.bool: torch.uint8, torch.bfloat16: torch.int16}


def is_of_other_bits(host: bool, self: Tensor, dim: int, index: Tensor, src: Tensor) -> bool:
    """Whether a plain write is one that Inductor hands to a library on the GPU."""
    return not host and self.dtype in _BITS


def scatter_src(host: bool, self: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """Plain writes of the same bits in another dtype."""
    bits = _BITS[self.dtype]
    if self.dtype == torch.bool:
        # As numbers: Inductor of torch 2.11 does not know how many bits a bool has.
        flags: Tensor = aten.scatter.src(self.to(bits), dim, index, src.to(bits))
        return flags != 0
    found: Tensor = aten.scatter.src(self.view(bits), dim, index, src.view(bits)).view(self.dtype)
    return found


def scatter_add(host: bool, self: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """Sums."""
    return scatter_reduce(host, self, dim, index, src, "sum")


def scatter_named(host: bool, self: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str) -> Tensor:
    """``scatter`` with a reduction, "add" or "multiply"."""
    return scatter_reduce(host, self, dim, index, src, {"add": "sum", "multiply": "prod"}[reduce])


def scatter_value(host: bool, self: Tensor, dim: int, index: Tensor, value: float, reduce: str) -> Tensor:
    """Of one number."""
    src = torch.full_like(index, value, dtype=self.dtype)
    return scatter_named(host, self, dim, index, src, reduce)


def index_reduce(
    host: bool, self: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, include_self: bool = True
) -> Tensor:
    """Of slices: every element of a slice has its index."""
    if self.dim() == 0:
        flat = scatter_reduce(host, self.reshape(1), 0, index.reshape(-1), source.reshape(-1), reduce, include_self)
        return flat.reshape([])
    shape = [1] * self.dim()
    shape[dim] = -1
    each = index.reshape(shape).expand(source.shape)
    return scatter_reduce(host, self, dim, each, source, reduce, include_self)


def scatter_reduce(
    host: bool, self: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, include_self: bool = True
) -> Tensor:
    """Reductions of what falls onto each element.

    Sums are generated. The runtime has the others on the host. On the GPU a mean is a sum and a count, and the greatest
    and the least are found at the ends of what a sort by value and then by index puts together; a product looks at
    every pair, which the rule bounds.
    """
    if self.dim() == 0:
        one = (x.reshape(1) for x in (self, index, src))
        self, index, src = one
        return scatter_reduce(host, self, 0, index, src, reduce, include_self).reshape([])
    index = index.to(torch.int64)
    if any(isinstance(size, int) and size == 0 for size in index.shape):
        return self.clone()
    src = _cut(src, index)
    count = functools.partial(_count, self, dim, index)
    if reduce == "sum":
        base = self if include_self else torch.where(count() > 0, torch.zeros_like(self), self)
        return _sum(base, dim, index, src)
    if host:
        found: Tensor = aten.scatter_reduce.two(self, dim, index, src, reduce, include_self=include_self)
        return found
    if reduce == "mean":
        return _mean(self, dim, index, src, count(), include_self)
    if reduce == "prod":
        return _product(self, dim, index, src, include_self)
    return _extreme(self, dim, index, src, reduce == "amax", include_self)


def _sum(self: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    def add(x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = aten.scatter_add.default(x, dim, index, y)
        return found

    return add_through(add, self, src)


def _count(self: Tensor, dim: int, index: Tensor) -> Tensor:
    """How many sources fall onto each element, int32."""
    zero = torch.zeros_like(self, dtype=torch.int32)
    return _sum(zero, dim, index, torch.ones_like(index, dtype=torch.int32))


def _mean(self: Tensor, dim: int, index: Tensor, src: Tensor, count: Tensor, include_self: bool) -> Tensor:
    reached = count > 0
    base = self if include_self else torch.where(reached, torch.zeros_like(self), self)
    terms = count + 1 if include_self else count.clamp(min=1)
    if not self.dtype.is_floating_point:
        return torch.where(reached, _sum(base, dim, index, src) // terms, self).to(self.dtype)
    wide = self.dtype if self.dtype in ADDED else torch.float32
    total = _sum(base.to(wide), dim, index, src.to(wide))
    return torch.where(reached, (total / terms).to(self.dtype), self)


def _product(self: Tensor, dim: int, index: Tensor, src: Tensor, include_self: bool) -> Tensor:
    x, index, src = (each.movedim(dim, -1) for each in (self, index, src))
    inner = tuple(slice(0, size) for size in index.shape[:-1])
    part = x[inner]
    hits = index[..., None, :] == torch.arange(x.shape[-1], device=x.device)[:, None]
    wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    wide = torch.int64 if not x.dtype.is_floating_point else wide
    product = torch.where(hits, src.to(wide)[..., None, :], torch.ones([], dtype=wide)).prod(-1)
    found = part.to(wide) * product if include_self else torch.where(hits.any(-1), product, part.to(wide))
    return _put_back(x, found.to(x.dtype), inner).movedim(-1, dim).contiguous()


def _extreme(self: Tensor, dim: int, index: Tensor, src: Tensor, greatest: bool, include_self: bool) -> Tensor:
    x, index, src = (each.movedim(dim, -1).contiguous() for each in (self, index, src))
    inner = tuple(slice(0, size) for size in index.shape[:-1])
    part = x[inner]
    values, order = sort(False, src, -1)
    sorted_index, by_index = sort(False, index.gather(-1, order), -1)
    values = values.gather(-1, by_index)
    place = torch.arange(x.shape[-1], device=x.device).expand(part.shape)
    begin, end = search(False, sorted_index, place), search(False, sorted_index, place, right=True)
    last = values.gather(-1, (end - 1).clamp(min=0))
    found = last
    if not greatest:
        first = values.gather(-1, begin.clamp(max=values.shape[-1] - 1))
        found = torch.where(last.isnan(), last, first) if x.dtype.is_floating_point else first
    if include_self:
        found = _either(part, found, greatest)
    return _put_back(x, torch.where(end > begin, found, part), inner).movedim(-1, dim).contiguous()


def _either(a: Tensor, b: Tensor, greatest: bool) -> Tensor:
    if a.dtype == torch.bool:
        return a | b if greatest else a & b
    return torch.maximum(a, b) if greatest else torch.minimum(a, b)


def _cut(src: Tensor, index: Tensor) -> Tensor:
    """The part of ``src`` that ``index`` reaches."""
    return src[tuple(slice(0, size) for size in index.shape)]


def _put_back(x: Tensor, part: Tensor, inner: tuple[slice, ...]) -> Tensor:
    """``x`` with ``part`` in its corner: all of it where the sizes agree."""
    if all(statically_known_true(a == b) for a, b in zip(part.shape, x.shape, strict=True)):
        return part
    pads = [pad for dim in reversed(range(x.dim())) for pad in (0, x.shape[dim] - part.shape[dim])]
    inside = aten.constant_pad_nd.default(torch.ones_like(part, dtype=torch.bool), pads, False)
    return torch.where(inside, aten.constant_pad_nd.default(part, pads, 0), x)

"""Sums through indices, in dtypes that generated code adds in on every target.

It adds with atomics, which GPUs have for float32, float64 and int32. 16-bit floats are summed in float32 and rounded
once. An int64 is three parts of at most 22 bits, whose sums are exact in float64 for up to 2^31 terms, so that they
come out the same in any order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

aten = torch.ops.aten

_PART = 22  # bits; three parts have 64 or more

# Adds values through fixed indices to a tensor, both of one of the dtypes in ``ADDED``.
Add = Callable[[Tensor, Tensor], Tensor]

# Dtypes in which generated code adds.
ADDED = frozenset({torch.float32, torch.float64, torch.int32})


def add_through(add: Add, self: Tensor, values: Tensor) -> Tensor:
    """``self`` plus ``values`` wherever ``add`` puts them, in the dtype of ``self``."""
    dtype = self.dtype
    if dtype in ADDED:
        return add(self, values)
    if dtype == torch.int64:
        return _add_parts(add, self, values)
    if dtype == torch.bool:
        return add(self.to(torch.int32), values.to(torch.int32)) != 0
    wide = torch.float32 if dtype.is_floating_point else torch.int32
    return add(self.to(wide), values.to(wide)).to(dtype)


def _add_parts(add: Add, self: Tensor, values: Tensor) -> Tensor:
    found = self
    zero = torch.zeros_like(self, dtype=torch.float64)
    for shift in range(0, 64, _PART):
        part = (values >> shift) & ((1 << min(_PART, 64 - shift)) - 1)
        found = found + (add(zero, part.to(torch.float64)).to(torch.int64) << shift)
    return found


def is_accumulated(
    host: bool, self: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False
) -> bool:
    """Whether the call is a sum; plain writes stay as they are."""
    return accumulate


def index_put(
    host: bool, self: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False
) -> Tensor:
    """Sums by tensors of indices."""

    def add(x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = aten.index_put.default(x, indices, y, True)
        return found

    return add_through(add, self, values)


def index_add(host: bool, self: Tensor, dim: int, index: Tensor, source: Tensor, alpha: float = 1) -> Tensor:
    """Sums of slices; ``alpha`` times a slice is of its dtype."""
    if self.dim() == 0:
        # A number, as a tensor of one.
        whole = index_add(host, self.reshape(1), 0, index.reshape(-1), source.reshape(-1), alpha)
        return whole.reshape([])
    values = source if alpha == 1 else source * alpha
    where: list[Tensor | None] = [None] * (dim % self.dim()) + [index.reshape(-1)]
    return index_put(host, self, where, values, True)

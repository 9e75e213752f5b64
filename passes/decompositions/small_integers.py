"""Magnitudes, and the greater and the less, of integers of 8 and 16 bits.

C++ computes with them in 32 bits. Inductor's code for the host takes that back after most operators, but ``std::abs``
of -32768 is 32768 until it is stored, which a comparison in the same loop sees; and its function for the greater of two
numbers, which wants them of one type, does not compile behind a quotient. PyTorch's results have the arguments' dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from etcuda.passes.decompositions.record import Arguments, Decomposition, existing

aten = torch.ops.aten

_SMALL = frozenset({torch.int8, torch.int16, torch.uint8})


def magnitude(self: Tensor) -> Tensor:
    """The magnitude; the least number, which has none in its dtype, is itself."""
    return torch.where(self < 0, -self, self)


def maximum(self: Tensor, other: Tensor) -> Tensor:
    """The greater of two numbers of one dtype."""
    return torch.where(self > other, self, other)


def minimum(self: Tensor, other: Tensor) -> Tensor:
    """The less of two numbers of one dtype."""
    return torch.where(self < other, self, other)


def clamp(self: Tensor, low: int | None, high: int | None) -> Tensor:
    """Numbers, or the bound that they are beyond; the upper one where both are."""
    found = self if low is None else torch.where(self < low, low, self)
    return found if high is None else torch.where(found > high, high, found)


def _is_signed(given: Arguments) -> bool:
    return given["self"].dtype in _SMALL - {torch.uint8}


def _is_of_one_dtype(given: Arguments) -> bool:
    return given["self"].dtype in _SMALL and given["self"].dtype == given["other"].dtype


def _has_bounds_of_its_dtype(given: Arguments) -> bool:
    dtype = given["self"].dtype
    if dtype not in _SMALL:
        return False
    limits = torch.iinfo(dtype)
    bounds = [each for each in (given["min"], given["max"]) if each is not None]
    return all(type(each) is int and limits.min <= each <= limits.max for each in bounds)


DECOMPOSITIONS = (
    Decomposition(existing(aten, "abs.default"), magnitude, _is_signed),
    Decomposition(existing(aten, "maximum.default"), maximum, _is_of_one_dtype),
    Decomposition(existing(aten, "minimum.default"), minimum, _is_of_one_dtype),
    Decomposition(existing(aten, "clamp.default"), clamp, _has_bounds_of_its_dtype),
)

"""Division of floating-point numbers that is rounded to an integer, and what remains.

Inductor takes the floor of a quotient that a GPU divides approximately; PyTorch subtracts the remainder first, so that
1.0 // 0.1 is 9, and infinity // 2 is no number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from etcuda.passes.decompositions.record import Arguments, Decomposition, accumulator, existing

aten = torch.ops.aten


def div(self: Tensor, other: Tensor | float, rounding_mode: str | None) -> Tensor:
    """The quotient, rounded down or to zero, in the dtype that the operands promote to."""
    dtype = torch.result_type(self, other)
    a, b = _operands(self, other, dtype)
    return (_floor(a, b) if rounding_mode == "floor" else _trunc(a, b)).to(dtype)


def floor_divide(self: Tensor, other: Tensor | float) -> Tensor:
    """The quotient, rounded down."""
    return div(self, other, "floor")


def remainder(self: Tensor, other: Tensor | float) -> Tensor:
    """What remains of a division that is rounded down: it has the sign of the divisor."""
    dtype = torch.result_type(self, other)
    a, b = _operands(self, other, dtype)
    rest = torch.fmod(a, b)
    return torch.where((rest != 0) & ((b < 0) != (rest < 0)), rest + b, rest).to(dtype)


def _operands(self: Tensor, other: Tensor | float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    a = self.to(accumulator(dtype))
    b = other.to(a.dtype) if isinstance(other, Tensor) else torch.full((), other, dtype=a.dtype, device=a.device)
    return a, b


def _floor(a: Tensor, b: Tensor) -> Tensor:
    remainder = torch.fmod(a, b)
    quotient = (a - remainder) / b
    quotient = torch.where((remainder != 0) & ((b < 0) != (remainder < 0)), quotient - 1, quotient)
    below = torch.floor(quotient)
    rounded = torch.where(quotient - below > 0.5, below + 1, below)
    # Zero has the sign of the quotient.
    rounded = torch.where(quotient == 0, torch.copysign(torch.zeros_like(quotient), a / b), rounded)
    return torch.where(b == 0, a / b, rounded)


def _trunc(a: Tensor, b: Tensor) -> Tensor:
    quotient = a / b
    nearest = torch.round(quotient)
    return torch.where(nearest * b == a, nearest, torch.trunc(quotient))


def _applies(given: Arguments) -> bool:
    self, other = given["self"], given["other"]
    dtype = torch.result_type(self, other) if isinstance(self, Tensor) else torch.int64
    has_mode = given.get("rounding_mode", "floor") is not None
    return has_mode and dtype.is_floating_point and dtype.itemsize > 1


DECOMPOSITIONS = (
    Decomposition(existing(aten, "div.Tensor_mode", "div.Scalar_mode"), div, _applies),
    Decomposition(existing(aten, "floor_divide.default", "floor_divide.Scalar"), floor_divide, _applies),
    Decomposition(existing(aten, "remainder.Tensor", "remainder.Scalar"), remainder, _applies),
)

"""A complex tensor as two real ones, and arithmetic with them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

REAL_OF = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}


class Pair(NamedTuple):
    """The real and the imaginary part, of one shape and dtype where they are tensors."""

    re: Any
    im: Any


def pair_of(value: Any) -> Pair:
    """A pair, a complex number, or a real one, whose imaginary part is the number 0."""
    if isinstance(value, Pair):
        return value
    if isinstance(value, complex):
        return Pair(value.real, value.imag)
    return Pair(value, 0.0)


def settle(value: Pair, dtype: torch.dtype, like: Tensor) -> Pair:
    """With tensors for both parts, of the shape of ``like`` and in ``dtype``, a real one."""
    return Pair(*(_tensor(part, dtype, like) for part in value))


def _tensor(part: Any, dtype: torch.dtype, like: Tensor) -> Tensor:
    if isinstance(part, Tensor):
        return part.to(dtype).expand(like.shape)
    return torch.full(like.shape, part, dtype=dtype, device=like.device)


def mul(a: Pair, b: Pair) -> Pair:
    """A product; where a part is the number 0 nothing is multiplied by it."""
    return Pair(_sub(_times(a.re, b.re), _times(a.im, b.im)), _plus(_times(a.re, b.im), _times(a.im, b.re)))


def add(a: Pair, b: Pair) -> Pair:
    """A sum."""
    return Pair(_plus(a.re, b.re), _plus(a.im, b.im))


def scale(a: Pair, factor: Any) -> Pair:
    """A product with a real number or tensor."""
    return Pair(_times(a.re, factor), _times(a.im, factor))


def neg(a: Pair) -> Pair:
    """With the other sign."""
    return Pair(-a.re, -a.im)


def conj(a: Pair) -> Pair:
    """The conjugate."""
    return Pair(a.re, -a.im)


def reciprocal(a: Pair) -> Pair:
    """By the larger part first, so that squares neither overflow nor vanish (Smith, "Algorithm 116", 1962)."""
    if not isinstance(a.im, Tensor) and a.im == 0:
        return Pair(1 / a.re, 0.0)
    if not isinstance(a.re, Tensor) and not isinstance(a.im, Tensor):
        inverse = 1 / complex(a.re, a.im)
        return Pair(inverse.real, inverse.imag)
    largest = torch.maximum(abs_part(a.re, a.im), abs_part(a.im, a.re))
    re, im = a.re / largest, a.im / largest
    square = re * re + im * im
    return Pair(re / square / largest, -im / square / largest)


def abs_part(part: Any, other: Any) -> Tensor:
    """A part's absolute value, as a tensor where the other part is one."""
    if isinstance(part, Tensor):
        return part.abs()
    return torch.full_like(other, abs(part))


def div(a: Pair, b: Pair) -> Pair:
    """A quotient."""
    if not isinstance(b.im, Tensor) and b.im == 0:
        return Pair(a.re / b.re, a.im / b.re)
    return mul(a, reciprocal(b))


def modulus(a: Pair) -> Tensor:
    """The absolute value."""
    return torch.hypot(a.re, a.im)


def angle(a: Pair) -> Tensor:
    """The argument."""
    return torch.atan2(a.im, a.re)


def polar(radius: Any, phase: Any) -> Pair:
    """From absolute value and argument."""
    return Pair(radius * phase.cos(), radius * phase.sin())


def exp(a: Pair) -> Pair:
    """e to the power of it."""
    return polar(a.re.exp(), a.im)


def log(a: Pair) -> Pair:
    """The principal value."""
    return Pair(modulus(a).log(), angle(a))


def sqrt(a: Pair) -> Pair:
    """The root whose real part is not negative."""
    size = modulus(a)
    re = ((size + a.re.abs()) / 2).sqrt()
    im = torch.where(re == 0, 0, a.im.abs() / (2 * re))
    large, small = torch.where(a.re >= 0, re, im), torch.where(a.re >= 0, im, re)
    return Pair(large, torch.copysign(small, a.im))


def power(a: Pair, exponent: Any) -> Pair:
    """With a number as the exponent, by products where it is a small integer."""
    if isinstance(exponent, float) and exponent.is_integer():
        exponent = int(exponent)
    if exponent == 0.5:
        return sqrt(a)
    if isinstance(exponent, int) and 0 < abs(exponent) <= 16:
        found = a
        for bit in bin(abs(exponent))[3:]:
            found = mul(found, found)
            found = mul(found, a) if bit == "1" else found
        return reciprocal(found) if exponent < 0 else found
    if isinstance(exponent, int) and exponent == 0:
        return Pair(torch.ones_like(a.re), torch.zeros_like(a.im))
    return exp_of_product(a, pair_of(exponent))


def exp_of_product(a: Pair, exponent: Pair) -> Pair:
    """``a`` to the power of ``exponent`` through the logarithm; 0 to any power is 0."""
    raised = exp(pair_tensors(mul(log(a), exponent), a))
    zero = (a.re == 0) & (a.im == 0)
    return Pair(torch.where(zero, 0, raised.re), torch.where(zero, 0, raised.im))


def pair_tensors(value: Pair, like: Pair) -> Pair:
    """With a tensor where a part is a number."""
    return Pair(*(part if isinstance(part, Tensor) else torch.full_like(like.re, part) for part in value))


def is_zero(part: Any) -> bool:
    """Whether a part is the number 0."""
    return not isinstance(part, Tensor) and part == 0 and math.copysign(1, part) > 0


def _times(a: Any, b: Any) -> Any:
    return 0.0 if is_zero(a) or is_zero(b) else a * b


def _plus(a: Any, b: Any) -> Any:
    return b if is_zero(a) else a if is_zero(b) else a + b


def _sub(a: Any, b: Any) -> Any:
    return a if is_zero(b) else -b if is_zero(a) else a - b

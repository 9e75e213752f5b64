"""Fourier transforms of any length, as products with small matrices.

A length that is a product ``n1 * n2`` takes a transform of length ``n1`` and one of length ``n2`` (Cooley and Tukey,
"An algorithm for the machine calculation of complex Fourier series", 1965); a large prime becomes a convolution
(Bluestein, "A linear filtering approach to the computation of discrete Fourier transform", 1970). Matrices are of at
most ``_MATRIX`` rows, so that a transform of length n takes about ``8 n * sum of factors`` multiplications and
additions, and an error of a few units in the last place of the largest result. A length that is not fixed takes one
matrix of n by n, made at each call.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import torch
from torch import Tensor

from etcuda.passes.complex_numbers.pair import Pair, mul
from etcuda.passes.complex_numbers.tables import Tables

aten = torch.ops.aten

_MATRIX = 64  # most rows of a matrix of a transform
_PRIME = 128  # most rows where the length is prime


@dataclasses.dataclass(frozen=True)
class Transformer:
    """How transforms compute.

    Attributes:
        tables: gives constants.
        by_products: whether matrix products are exact to the dtype's precision on the target; else sums of elementwise
            products are taken.
    """

    tables: Tables
    by_products: bool = True

    def transform(self, x: Pair | Tensor, dim: int, *, forward: bool) -> Pair:
        """Along one dimension, without a factor. ``x`` may be real."""
        parts = x if isinstance(x, Pair) else Pair(x, None)
        parts = Pair(*(None if part is None else part.movedim(dim, -1) for part in parts))
        made = self._last(parts, parts.re.shape[-1], forward)
        return Pair(*(part.movedim(-1, dim) for part in made))

    def _last(self, x: Pair, n: int | torch.SymInt, forward: bool) -> Pair:
        if not isinstance(n, int):
            return self._by_matrix(x, _matrix_of_size(n, x.re, forward))
        if n == 1:
            return x if x.im is not None else Pair(x.re, torch.zeros_like(x.re))
        first = _factor(n)
        if first is None:
            return self._convolved(x, n, forward) if n > _PRIME else self._by_table(x, n, forward)
        return self._by_table(x, n, forward) if first == n else self._in_two(x, first, n // first, forward)

    def _in_two(self, x: Pair, n1: int, n2: int, forward: bool) -> Pair:
        """The element ``j1 * n2 + j2`` contributes to the result ``k1 + n1 * k2``."""
        batch = x.re.shape[:-1]
        x = Pair(*(None if part is None else part.reshape(*batch, n1, n2).transpose(-1, -2) for part in x))
        inner = self._last(x, n1, forward)
        inner = mul(inner, self._twiddles(n1, n2, forward, x.re.dtype))
        inner = Pair(*(part.transpose(-1, -2) for part in inner))
        outer = self._last(inner, n2, forward)
        return Pair(*(part.transpose(-1, -2).reshape(*batch, n1 * n2) for part in outer))

    def _convolved(self, x: Pair, n: int, forward: bool) -> Pair:
        """With ``j * k = (j**2 + k**2 - (k - j)**2) / 2`` a transform is a convolution, of any greater length."""
        m = 1 << (2 * n - 2).bit_length()
        dtype = x.re.dtype
        chirp = self._pair(f"chirp_{n}_{forward}", dtype, functools.partial(_chirp, n, forward))
        spectrum = self._pair(f"chirp_spectrum_{n}_{forward}", dtype, functools.partial(_spectrum, n, m, forward))
        raised = mul(Pair(x.re, 0.0 if x.im is None else x.im), chirp)
        padded = Pair(*(aten.constant_pad_nd.default(part, [0, m - n]) for part in raised))
        product = mul(self._last(padded, m, True), spectrum)
        back = self._last(product, m, False)
        return mul(Pair(*(part[..., :n] for part in back)), chirp)

    def _by_table(self, x: Pair, n: int, forward: bool) -> Pair:
        dtype = x.re.dtype
        return self._by_matrix(x, self._pair(f"dft_{n}_{forward}", dtype, functools.partial(_matrix, n, forward)))

    def _by_matrix(self, x: Pair, matrix: Pair) -> Pair:
        n = matrix.re.shape[0]
        both = torch.cat([matrix.re, matrix.im], 1)
        made = self._product(x.re, both)
        if x.im is not None:
            made = made + self._product(x.im, torch.cat([-matrix.im, matrix.re], 1))
        return Pair(made[..., :n], made[..., n:])

    def _product(self, x: Tensor, matrix: Tensor) -> Tensor:
        """(..., n) by (n, m)."""
        if self.by_products:
            rows = torch.mm(x.reshape(-1, x.shape[-1]), matrix)
            return rows.reshape(*x.shape[:-1], matrix.shape[1])
        return (x.unsqueeze(-1) * matrix).sum(-2)

    def _twiddles(self, n1: int, n2: int, forward: bool, dtype: torch.dtype) -> Pair:
        return self._pair(f"twiddles_{n1}_{n2}_{forward}", dtype, functools.partial(_twiddles, n1, n2, forward))

    def _pair(self, name: str, dtype: torch.dtype, make: functools.partial[Pair]) -> Pair:
        found = self.tables.get(name, dtype, lambda: torch.stack(make()))
        return Pair(found[0], found[1])


def _factor(n: int) -> int | None:
    """A factor of at most ``_MATRIX``, near the root where that is possible; ``n`` itself if it is that small."""
    if n <= _MATRIX:
        return n
    small = [f for f in range(2, _MATRIX + 1) if n % f == 0]
    if not small:
        return None
    root = math.isqrt(n)
    below = [f for f in small if f >= root]
    return below[0] if below else small[-1]


def _turn(steps: Tensor, n: int, forward: bool) -> Pair:
    """``exp(-2 pi i steps / n)``, or its conjugate."""
    steps = steps % n
    phase = steps.to(torch.float64) * ((-2 if forward else 2) * math.pi / n)
    # No rounding of pi where a part is zero.
    return Pair(torch.where(4 * steps % (2 * n) == n, 0, phase.cos()), torch.where(2 * steps % n == 0, 0, phase.sin()))


def _matrix(n: int, forward: bool) -> Pair:
    at = torch.arange(n)
    return _turn(at.unsqueeze(1) * at, n, forward)


def _twiddles(n1: int, n2: int, forward: bool) -> Pair:
    """[n2, n1]."""
    return _turn(torch.arange(n2).unsqueeze(1) * torch.arange(n1), n1 * n2, forward)


def _chirp(n: int, forward: bool) -> Pair:
    at = torch.arange(n)
    return _turn(at * at, 2 * n, forward)


def _spectrum(n: int, m: int, forward: bool) -> Pair:
    """Of the conjugate chirp at positions from -(n - 1) to n - 1, divided by m."""
    chirp = _chirp(n, not forward)
    values = torch.complex(*chirp)
    full = torch.zeros(m, dtype=torch.complex128)
    full[:n] = values
    full[m - n + 1 :] = values[1:].flip(0)
    spectrum = torch.fft.fft(full) / m
    return Pair(spectrum.real, spectrum.imag)


def _matrix_of_size(n: Any, like: Tensor, forward: bool) -> Pair:
    at = torch.arange(n, device=like.device)
    steps = (at.unsqueeze(1) * at) % n
    # Between -n / 2 and n / 2, where the rounding of a number of radians is least.
    steps = torch.where(2 * steps > n, steps - n, steps)
    phase = steps.to(like.dtype) * ((-2 if forward else 2) * math.pi) / n
    return Pair(phase.cos(), phase.sin())

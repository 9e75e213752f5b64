"""Attention masks that positions determine.

``recognize_mask`` proves that the formula of a mask is that of a kernel's own arguments, or says why it is not; in
doubt it is not. Nothing is changed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import sympy
import torch
from torch.fx import Node

from etcuda.kernels.attention.problem import FULL, LOWER_RIGHT, POSITIONS, UPPER_LEFT
from etcuda.passes.recognize import elementwise_compute, elementwise_views
from etcuda.passes.recognize.elementwise_values import Formulas, Index, shape_of

_B, _H, _M, _N = (sympy.Symbol(name, integer=True, nonnegative=True) for name in ("b", "h", "m", "n"))


@dataclasses.dataclass(frozen=True)
class Bound:
    """Integers of a tensor plus a constant.

    Attributes:
        source: of any rank; apart from dimensions of size one: by batch, by row, by both in this order, or one number.
        offset: the constant.
        by_batch: the tensor has a dimension for the batch.
    """

    source: Node
    offset: int
    by_batch: bool


@dataclasses.dataclass(frozen=True)
class PositionMask:
    """A mask as kernel arguments.

    Attributes:
        causal: FULL, UPPER_LEFT, LOWER_RIGHT or POSITIONS.
        window: keys that a row sees; 0 for all.
        positions: for POSITIONS: by row, or by batch and row; a single query row may have one number, or one by batch.
        kv_len: one number, or one by batch; ``None`` for all keys.
    """

    causal: int
    window: int = 0
    positions: Bound | None = None
    kv_len: Bound | None = None


class NotRecognizedError(Exception):
    """Why a mask stays a tensor."""


def recognize_mask(mask: Node, q: Node, k: Node) -> PositionMask:
    """The kernel arguments that a mask is equal to.

    Args:
        mask: bool, or floating with nothing but zeros and minus infinities.
        q: [batch, heads, L_q, head_dim].
        k: [batch, kv_heads, L_kv, head_dim].

    Raises:
        NotRecognizedError: nothing of the kind could be proven.
    """
    formulas = Formulas({**elementwise_compute.RULES, **elementwise_views.RULES})
    (batch, _, l_q, _), l_kv = shape_of(q), shape_of(k)[2]
    formula = formulas.of(mask).broadcast((_B, _H, _M, _N))
    lowest = False
    if mask.meta["val"].dtype != torch.bool:
        formula, lowest = _condition(formula, mask.meta["val"].dtype)
    upper, lower = _bounds(formula, l_kv)
    found = _arguments(upper, lower, _Sources(formulas, batch, l_q), l_q, l_kv)
    if lowest and not _every_row_sees_a_key(found, l_q, l_kv):
        raise NotRecognizedError("it holds the lowest finite number, and some row may see no key")
    return found


def _condition(formula: Any, dtype: torch.dtype) -> tuple[Any, bool]:
    """Of a floating mask: where it is zero, and whether it is finite elsewhere."""
    if isinstance(formula, sympy.Piecewise) and len(formula.args) == 2:
        (yes, condition), (no, _) = formula.args
        for zero, low, kept in ((yes, no, condition), (no, yes, sympy.Not(condition))):
            if zero.is_number and low.is_number and float(zero) == 0 and float(low) <= torch.finfo(dtype).min:
                return kept, low != -sympy.oo
    raise NotRecognizedError("its numbers are not zeros and minus infinities alone")


def _bounds(formula: Any, l_kv: Any) -> tuple[list[Any], list[Any]]:
    """Greatest and least keys that a row attends to, as far as they say anything."""
    upper: dict[Any, None] = {}
    lower: dict[Any, None] = {}
    parts = formula.args if isinstance(formula, sympy.And) else () if formula == sympy.true else (formula,)
    for part in parts:
        if not isinstance(part, sympy.Le | sympy.Lt | sympy.Ge | sympy.Gt):
            raise NotRecognizedError(f"it depends on {part}")
        difference = sympy.expand(part.lhs - part.rhs)
        slope = difference.coeff(_N)
        rest = sympy.expand(difference - slope * _N)
        if slope not in (1, -1) or rest.has(_N) or rest.has(_H) or rest.has(sympy.Piecewise):
            raise NotRecognizedError(f"it depends on {part}")
        strict = isinstance(part, sympy.Lt | sympy.Gt)
        is_upper = isinstance(part, sympy.Le | sympy.Lt) == (slope == 1)
        bound = -slope * rest
        if is_upper:
            bound = bound - 1 if strict else bound
            if not (bound - (l_kv - 1)).is_nonnegative:
                upper[sympy.expand(bound)] = None
        else:
            bound = bound + 1 if strict else bound
            if not (-bound).is_nonnegative:
                lower[sympy.expand(bound)] = None
    return list(upper), list(lower)


def _arguments(upper: list[Any], lower: list[Any], sources: _Sources, l_q: Any, l_kv: Any) -> PositionMask:
    by_row = [bound for bound in upper if bound.has(_M)]
    for_all = [bound for bound in upper if not bound.has(_M)]
    if l_q == 1 and not by_row and len(for_all) == 1:
        by_row, for_all = for_all, []
    if len(by_row) > 1 or len(for_all) > 1 or len(lower) > 1 or (lower and not by_row):
        raise NotRecognizedError(f"it has the bounds {upper} and {lower}")
    kv_len = None
    if for_all:
        kv_len = sources.find(for_all[0] + 1, by_row=False)
    if not by_row:
        return PositionMask(FULL, kv_len=kv_len)
    last = by_row[0]
    window = 0
    if lower:
        span = sympy.expand(last - lower[0] + 1)
        if not span.is_Integer or span <= 0:
            raise NotRecognizedError(f"its rows see {span} keys, which is no fixed number")
        window = int(span)
    if last == _M or (l_q == 1 and last == 0):
        return PositionMask(UPPER_LEFT, window, kv_len=kv_len)
    if kv_len is None and sympy.expand(last - (_M + l_kv - l_q)) == 0:
        return PositionMask(LOWER_RIGHT, window)
    return PositionMask(POSITIONS, window, sources.find(last, by_row=l_q != 1), kv_len)


class _Sources:
    """Tensors of integers that a mask is computed from, as what a bound may be read from."""

    def __init__(self, formulas: Formulas, batch: Any, l_q: Any) -> None:
        self._sizes = ((_B, batch), (_M, l_q))
        self._tensors = [
            (node, elements)
            for node, elements in formulas.known()
            if node.meta["val"].dtype in (torch.int32, torch.int64)
        ]

    def find(self, bound: Any, by_row: bool) -> Bound:
        """A tensor that holds the bound up to a constant; one that holds it exactly if there is one.

        Args:
            bound: a formula of the batch row and the query row.
            by_row: the tensor has a number for each query row.

        Raises:
            NotRecognizedError: there is no such tensor.
        """
        found = None
        for node, elements in self._tensors:
            for index in self._indices(elements.shape):
                offset = sympy.expand(bound - elements.at(index))
                if (_M in index) == by_row and offset.is_Integer and (found is None or offset == 0):
                    found = Bound(node, int(offset), _B in index)
                    if offset == 0:
                        return found
        if found is None:
            raise NotRecognizedError(f"no tensor holds its bound {bound} by batch or row, up to a constant")
        return found

    def _indices(self, shape: Index) -> Iterator[Index]:
        """Ways in which the dimensions may stand for the batch and the query rows."""
        choices = [
            (sympy.S.Zero,) if size == 1 else tuple(symbol for symbol, length in self._sizes if size == length)
            for size in shape
        ]
        for index in itertools.product(*choices):
            if [i for i in index if i != 0] in ([], [_B], [_M], [_B, _M]):
                yield index


def _every_row_sees_a_key(found: PositionMask, l_q: Any, l_kv: Any) -> bool:
    if found.kv_len is not None or found.causal not in (UPPER_LEFT, LOWER_RIGHT):
        return False
    if found.causal == UPPER_LEFT and not found.window:
        return True
    return bool((l_kv - l_q).is_nonnegative)

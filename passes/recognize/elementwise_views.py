"""Formulas of tensors whose elements are those of others in other places: reshapes, slices, concatenation, look-ups.

A rule gives the formula of a result that it can prove, in doubt ``None``. It changes nothing.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch.fx import Node

from etcuda.passes.recognize.elementwise_values import (
    Elements,
    Formulas,
    Index,
    Rules,
    is_exact,
    number,
    rule,
    shape_of,
)

aten = torch.ops.aten

RULES: Rules = {}


@rule(RULES, aten.expand.default)
def _expand(formulas: Formulas, node: Node) -> Elements:
    inner = formulas.scalar_or(node.args[0])
    return Elements(shape_of(node), inner.broadcast)


@rule(RULES, aten.reshape.default, aten.view.default, aten.unsqueeze.default, aten.squeeze.dims, aten.squeeze.dim)
def _reshape(formulas: Formulas, node: Node) -> Elements | None:
    """Only what adds or drops dimensions of size one."""
    inner = formulas.scalar_or(node.args[0])
    shape = shape_of(node)
    kept = [dim for dim, size in enumerate(shape) if size != 1]
    if [shape[dim] for dim in kept] != [size for size in inner.shape if size != 1]:
        return None

    def at(index: Index) -> Any:
        rest = iter(index[dim] for dim in kept)
        return inner.at(tuple(sympy.S.Zero if size == 1 else next(rest) for size in inner.shape))

    return Elements(shape, at)


@rule(RULES, aten.permute.default)
def _permute(formulas: Formulas, node: Node) -> Elements:
    inner = formulas.scalar_or(node.args[0])
    dims: Any = node.args[1]
    places = {int(dim) % len(dims): place for place, dim in enumerate(dims)}
    return Elements(shape_of(node), lambda index: inner.at(tuple(index[places[dim]] for dim in range(len(dims)))))


@rule(RULES, aten.slice.Tensor)
def _slice(formulas: Formulas, node: Node) -> Elements | None:
    inner = formulas.scalar_or(node.args[0])
    dim: Any = node.args[1] if len(node.args) > 1 else 0
    start = number(node.args[2]) if len(node.args) > 2 and node.args[2] is not None else sympy.S.Zero
    step = number(node.args[4]) if len(node.args) > 4 else sympy.S.One
    # A start beyond the end is clamped to it, but then there is no element.
    if not start.is_nonnegative:
        return None
    place = int(dim) % len(inner.shape)
    return Elements(shape_of(node), lambda i: inner.at((*i[:place], i[place] * step + start, *i[place + 1 :])))


@rule(RULES, aten.select.int)
def _select(formulas: Formulas, node: Node) -> Elements | None:
    inner = formulas.scalar_or(node.args[0])
    dim: Any = node.args[1]
    chosen = number(node.args[2])
    if not chosen.is_nonnegative:
        return None
    place = int(dim) % len(inner.shape)
    return Elements(shape_of(node), lambda i: inner.at((*i[:place], chosen, *i[place:])))


@rule(RULES, aten.cat.default)
def _cat(formulas: Formulas, node: Node) -> Elements | None:
    tensors: Any = node.args[0]
    parts = [formulas.scalar_or(tensor) for tensor in tensors]
    dim: Any = node.args[1] if len(node.args) > 1 else 0
    if not is_exact(node) or len({tensor.meta["val"].dtype for tensor in tensors}) != 1:
        return None
    place = int(dim) % len(parts[0].shape)

    def at(index: Index) -> Any:
        cases = []
        begin: Any = sympy.S.Zero
        for part in parts:
            inside = (*index[:place], index[place] - begin, *index[place + 1 :])
            begin = begin + part.shape[place]
            here = index[place] < begin
            if here != sympy.false:
                cases.append((part.at(inside), here))
        last = cases.pop()[0]
        return sympy.Piecewise(*cases, (last, True)) if cases else last

    return Elements(shape_of(node), at)


@rule(RULES, aten.index.Tensor)
def _index(formulas: Formulas, node: Node) -> Elements | None:
    """Only where every dimension is looked up with numbers that are not negative."""
    inner = formulas.scalar_or(node.args[0])
    tensors: Any = node.args[1]
    if len(tensors) != len(inner.shape) or any(tensor is None or not _is_index(tensor) for tensor in tensors):
        return None
    places = [formulas.of(tensor) for tensor in tensors]
    probe = tuple(sympy.Symbol(f"p{dim}", integer=True, nonnegative=True) for dim in range(len(shape_of(node))))
    if not all(place.broadcast(probe).is_nonnegative for place in places):
        return None
    return Elements(shape_of(node), lambda index: inner.at(tuple(place.broadcast(index) for place in places)))


def _is_index(node: Node) -> bool:
    return node.meta["val"].dtype in (torch.int32, torch.int64)

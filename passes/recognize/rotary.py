"""Rotary positions (Su et al., 2021), found by what becomes of each number of a head, whatever library wrote them.

``recognize_rotary`` proves that a tensor is another one rotated, or says in words why it is not; in doubt it is not.
Nothing is changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from etcuda.passes.graph.meta import tensor_of
from etcuda.passes.recognize.columns import ROWS, Entry, Sum, derive_columns, sources
from etcuda.passes.recognize.terms import alike, describe, name_of, uncast

aten = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class Rotary:
    """y = x rotated: ``y[d] = x[d] * cos[d] - x[d'] * sin[d]`` for the first number of a pair, with + for the second.

    Attributes:
        x: [*, *, *, head_dim], the shape and dtype of y.
        cos: broadcast to [*, *, *, columns]; as many columns as are rotated, or half of them.
        sin: likewise.
        rotary_dim: numbers of a head that are rotated, its first ones.
        interleaved: whether pairs are neighbours; else they are half of ``rotary_dim`` apart.
    """

    x: Node
    cos: Node
    sin: Node
    rotary_dim: int
    interleaved: bool


def recognize_rotary(y: Node) -> Rotary | str:
    """The rotation that computes ``y``, or why there is none."""
    result = tensor_of(y)
    if result.dim() != ROWS + 1 or not isinstance(result.shape[-1], int):
        return f"{name_of(y)} is {describe(result)}, expected 4 dimensions, the last one fixed"
    for x in sources(y):
        columns = derive_columns(y, x)
        found = None if columns is None else _read(list(columns))
        if found is None:
            continue
        cos, sin, rotary_dim, interleaved = found
        source = _in_dtype(x, result.dtype)
        if not alike(tensor_of(source), result):
            return f"{name_of(source)} is {describe(tensor_of(source))} and rotated {describe(result)}"
        return Rotary(source, cos, sin, rotary_dim, interleaved)
    return f"{name_of(y)} is no rotation of a tensor of its size"


def _in_dtype(node: Node, dtype: torch.dtype) -> Node:
    """The tensor in a dtype that ``node`` is a wider form of, if it is one."""
    while tensor_of(node).dtype != dtype:
        source = uncast(node)
        if source is None or not tensor_of(source).dtype.is_floating_point:
            break
        node = source
    return node


def _read(columns: Sequence[Sum]) -> tuple[Node, Node, int, bool] | None:
    """cos, sin, rotary_dim, and whether pairs are neighbours."""
    # What is not rotated is at the end, and is itself.
    rotary_dim = len(columns)
    while rotary_dim and columns[rotary_dim - 1] == {(rotary_dim - 1, None): 1.0}:
        rotary_dim -= 1
    if not rotary_dim or rotary_dim % 2:
        return None
    half = rotary_dim // 2
    pairs = [_own_and_other(one, place) for place, one in enumerate(columns[:rotary_dim])]
    if None in pairs:
        return None
    found: list[Any] = pairs
    others = [place for _, place, _, _ in found]
    if others == [(place + half) % rotary_dim for place in range(rotary_dim)]:
        interleaved = False
    elif others == [place ^ 1 for place in range(rotary_dim)]:
        interleaved = True
    else:
        return None
    # With a single pair both are the same.
    first = [place % 2 == 0 if interleaved else place < half for place in range(rotary_dim)]
    if [sign for _, _, _, sign in found] != [-1.0 if is_first else 1.0 for is_first in first]:
        return None
    cos, sin = (_table([each[index] for each in found], interleaved) for index in (0, 2))
    if cos is None or sin is None or cos[1] != sin[1]:
        return None
    return cos[0], sin[0], rotary_dim, interleaved


def _own_and_other(terms: Sum, place: int) -> tuple[Entry, int, Entry, float] | None:
    """The entry that the number itself is multiplied by; the other number of the pair, its entry and its sign."""
    if len(terms) != 2:
        return None
    own = [entry for (source, entry), factor in terms.items() if source == place and factor == 1.0]
    other = [(source, entry, factor) for (source, entry), factor in terms.items() if source != place]
    if len(own) != 1 or len(other) != 1 or own[0] is None or other[0][1] is None:
        return None
    return own[0], other[0][0], other[0][1], other[0][2]


def _table(entries: Sequence[Entry], interleaved: bool) -> tuple[Node, int] | None:
    """The tensor whose columns the entries are, in order, and how many columns it has."""
    table = entries[0][0]
    places = [place for node, place in entries if node is table]
    total = len(entries)
    half = total // 2
    # Its last dimension alone has columns.
    width = tensor_of(table).shape[-1]
    if places == list(range(total)) and width == total:
        return table, total
    if places == [place // 2 if interleaved else place % half for place in range(total)] and width == half:
        return table, half
    return None

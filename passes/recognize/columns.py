"""What heads are computed from, number by number: each number of a result as a sum of numbers of another tensor, times
entries of tables.

``derive_columns`` follows a tensor [*, *, *, columns...] back to another one through operators that keep the three
leading dimensions, and says for each place in the others which terms are summed there. In doubt it returns ``None``.
Nothing is changed. Casts are taken for exact.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.passes.graph.calls import arguments
from etcuda.passes.graph.meta import tensor_of
from etcuda.passes.recognize.terms import number

aten = torch.ops.aten

# An entry of a table: its node and which of its trailing numbers.
Entry = tuple[Node, int]
# A number as a sum: how often each product of a number of the other tensor, by its place, and an entry occurs in it.
Sum = dict[tuple[int, Entry | None], float]
ROWS = 3
_MOST_DEPTH = 40
_MOST_COLUMNS = 4096
_MOST_SOURCES = 16


def derive_columns(node: Node, source: Node) -> Any | None:
    """An array of ``Sum`` in the shape of the trailing dimensions of ``node``, or ``None``.

    Args:
        node: the result, [*, *, *, columns...].
        source: what it is computed from, [*, *, *, n].
    """
    try:
        return _Columns(source).of(node, 0)
    except _UnknownError:
        return None


class _UnknownError(Exception):
    """A step that no rule is for."""


class _Columns:
    def __init__(self, source: Node) -> None:
        self.source = source
        self.known: dict[Node, Any] = {}

    def of(self, node: Node, depth: int) -> Any:
        """The array of a node that depends on the source.

        Raises:
            _UnknownError: it does not, or by operators that no rule is for.
        """
        if node not in self.known:
            self.known[node] = self._derive(node, depth)
            if self.known[node] is not None and self.known[node].shape != _trailing(node):
                self.known[node] = None
        if self.known[node] is None:
            raise _UnknownError
        return self.known[node]

    def _derive(self, node: Node, depth: int) -> Any:
        if node is self.source:
            places = np.empty(_trailing(node), dtype=object)
            for place in np.ndindex(places.shape):
                places[place] = {(int(np.ravel_multi_index(place, places.shape)), None): 1.0}
            return places
        rule = _RULES.get(node.target) if node.op == "call_function" else None
        if rule is None or depth > _MOST_DEPTH:
            return None
        try:
            return rule(self, node, depth + 1)
        except _UnknownError:
            return None

    def first(self, node: Node, depth: int) -> Any:
        """The array of a call's first argument."""
        source = node.args[0]
        if not isinstance(source, Node):
            raise _UnknownError
        return self.of(source, depth)

    def times_table(self, values: Any, rows: Node, table: Node) -> Any:
        """Products of numbers, those of ``rows``, and entries of a table that is broadcast to them."""
        columns = tensor_of(rows).dim() - ROWS
        shape = tensor_of(table).shape[-columns:]
        if len(shape) < columns or not all(isinstance(size, int) for size in shape):
            raise _UnknownError
        entries = np.empty(tuple(shape), dtype=object)
        for index, place in enumerate(np.ndindex(entries.shape)):
            entries[place] = (table, index)
        return _elementwise(_times_entry, values, entries)


def _trailing(node: Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dim() <= ROWS:
        raise _UnknownError
    sizes = value.shape[ROWS:]
    if not all(isinstance(size, int) for size in sizes) or np.prod(sizes) > _MOST_COLUMNS:
        raise _UnknownError
    return tuple(sizes)


def _times_entry(sum_: Sum, entry: Entry) -> Sum:
    if any(other is not None for _, other in sum_):
        raise _UnknownError
    return {(place, entry): factor for (place, _), factor in sum_.items()}


def _scaled(values: Any, by: float) -> Any:
    return _elementwise(lambda one: {term: by * factor for term, factor in one.items()}, values)


def _elementwise(function: Callable[..., Sum], *values: Any) -> Any:
    try:
        broadcast = np.broadcast_arrays(*values)
    except ValueError as error:
        raise _UnknownError from error
    made = np.empty(broadcast[0].shape, dtype=object)
    for place in np.ndindex(made.shape):
        made[place] = function(*(each[place] for each in broadcast))
    return made


def _same(columns: _Columns, node: Node, depth: int) -> Any:
    return columns.first(node, depth)


def _cast(columns: _Columns, node: Node, depth: int) -> Any:
    source = node.args[0]
    dtypes = (tensor_of(node).dtype, tensor_of(source).dtype) if isinstance(source, Node) else ()
    if not dtypes or not all(dtype.is_floating_point for dtype in dtypes):
        raise _UnknownError
    return columns.first(node, depth)


def _neg(columns: _Columns, node: Node, depth: int) -> Any:
    return _scaled(columns.first(node, depth), -1.0)


def _reshape(columns: _Columns, node: Node, depth: int) -> Any:
    values = columns.first(node, depth)
    assert isinstance(node.args[0], Node)
    before, after = tensor_of(node.args[0]).shape, tensor_of(node).shape
    rows = zip(before[:ROWS], after[:ROWS], strict=True)
    if not all(statically_known_true(one == other) for one, other in rows):
        raise _UnknownError
    shape = _trailing(node)
    # Expanded ones have more.
    if np.prod(shape) != values.size:
        raise _UnknownError
    return values.reshape(shape)


def _dim(node: Node, dim: int, rank: int) -> int:
    """A dimension that is no row, counted from the first of the others."""
    dim = dim % rank - ROWS
    if dim < 0:
        raise _UnknownError
    return dim


def _slice(columns: _Columns, node: Node, depth: int) -> Any:
    values, given = columns.first(node, depth), arguments(node)
    bounds = [given[name] for name in ("start", "end", "step")]
    if not all(bound is None or isinstance(bound, int) for bound in bounds):
        raise _UnknownError
    dim = _dim(node, given["dim"], values.ndim + ROWS)
    return values[(slice(None),) * dim + (slice(*bounds),)]


def _select(columns: _Columns, node: Node, depth: int) -> Any:
    values, given = columns.first(node, depth), arguments(node)
    if not isinstance(given["index"], int):
        raise _UnknownError
    return np.take(values, given["index"], axis=_dim(node, given["dim"], values.ndim + ROWS))


def _parts(columns: _Columns, node: Node, depth: int) -> list[Any]:
    parts = node.args[0]
    if not isinstance(parts, list | tuple):
        raise _UnknownError
    return [columns.of(part, depth) for part in parts if isinstance(part, Node)]


def _cat(columns: _Columns, node: Node, depth: int) -> Any:
    values = _parts(columns, node, depth)
    return np.concatenate(values, _dim(node, arguments(node)["dim"], values[0].ndim + ROWS))


def _stack(columns: _Columns, node: Node, depth: int) -> Any:
    values = _parts(columns, node, depth)
    return np.stack(values, _dim(node, arguments(node)["dim"], values[0].ndim + ROWS + 1))


def _getitem(columns: _Columns, node: Node, depth: int) -> Any:
    """A part of a tensor that was split, along a dimension that is no row."""
    split, index = node.args
    if not isinstance(split, Node) or not isinstance(index, int) or split.target not in _SPLITS:
        raise _UnknownError
    given = arguments(split)
    values = columns.first(split, depth)
    dim = _dim(split, given["dim"], values.ndim + ROWS)
    if split.target is aten.unbind.int:
        return np.take(values, index, axis=dim)
    sizes = [each.shape[dim + ROWS] for each in split.meta["val"]]
    start = sum(sizes[:index])
    return values[(slice(None),) * dim + (slice(start, start + sizes[index]),)]


def _mul(columns: _Columns, node: Node, depth: int) -> Any:
    a, b = node.args
    for rows, factor in ((a, b), (b, a)):
        if not isinstance(rows, Node) or number(rows) is not None:
            continue
        try:
            values = columns.of(rows, depth)
        except _UnknownError:
            continue
        by = number(factor)
        if by is not None:
            return _scaled(values, by)
        if isinstance(factor, Node) and isinstance(factor.meta.get("val"), Tensor):
            return columns.times_table(values, rows, factor)
    raise _UnknownError


def _sum(columns: _Columns, node: Node, depth: int) -> Any:
    a, b = node.args[:2]
    if not isinstance(a, Node) or not isinstance(b, Node) or node.kwargs.get("alpha", 1) != 1 or len(node.args) != 2:
        raise _UnknownError
    sign = -1.0 if node.target is aten.sub.Tensor else 1.0

    def add(one: Sum, other: Sum) -> Sum:
        made = dict(one)
        for term, factor in other.items():
            made[term] = made.get(term, 0.0) + sign * factor
        return made

    return _elementwise(add, columns.of(a, depth), columns.of(b, depth))


_SPLITS = (aten.split_with_sizes.default, aten.split.Tensor, aten.unbind.int)
_RULES: dict[object, Callable[[_Columns, Node, int], Any]] = {
    aten._to_copy.default: _cast,
    aten.add.Tensor: _sum,
    aten.alias.default: _same,
    aten.cat.default: _cat,
    aten.clone.default: _same,
    aten.expand.default: _reshape,
    aten.mul.Tensor: _mul,
    aten.neg.default: _neg,
    aten.reshape.default: _reshape,
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.squeeze.dim: _reshape,
    aten.squeeze.dims: _reshape,
    aten.stack.default: _stack,
    aten.sub.Tensor: _sum,
    aten.unsqueeze.default: _reshape,
    aten.view.default: _reshape,
    operator.getitem: _getitem,
}


def sources(node: Node) -> list[Node]:
    """Tensors of the sizes of ``node`` that it may be computed from by operators with a rule, the nearest first."""
    shape = tensor_of(node).shape
    found: list[Node] = []
    seen = {node}
    pending = [node]
    for _ in range(_MOST_DEPTH):
        following = []
        for each in pending:
            # A list of parts has no rule of its own.
            if each.op != "call_function" or each.target not in {*_RULES, *_SPLITS}:
                continue
            for source in each.all_input_nodes:
                if source not in seen:
                    seen.add(source)
                    following.append(source)
        for each in following:
            value = each.meta.get("val")
            if isinstance(value, Tensor) and _same_sizes(value.shape, shape):
                found.append(each)
        pending = following
        if len(found) >= _MOST_SOURCES or not pending:
            break
    return found[:_MOST_SOURCES]


def _same_sizes(one: torch.Size, other: torch.Size) -> bool:
    return len(one) == len(other) and all(statically_known_true(a == b) for a, b in zip(one, other, strict=True))

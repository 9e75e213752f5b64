"""What integer and boolean tensors hold, as formulas of their indices.

A tensor that is built from ``arange``, sizes, comparisons and the like is a function of its indices that can be written
down; one that is not (an input, a look-up) is a function symbol. Two tensors whose formulas are equal are equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch.fx import Node

from etcuda.passes.graph.symbols import expression

aten = torch.ops.aten

Index = tuple[Any, ...]
_EXACT = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})


@dataclasses.dataclass(frozen=True)
class Elements:
    """A tensor: its sizes, and its element at an index, each a sympy formula."""

    shape: Index
    at: Callable[[Index], Any]

    def broadcast(self, index: Index) -> Any:
        """The element at an index of a tensor that this one is broadcast to."""
        mine = index[len(index) - len(self.shape) :]
        return self.at(tuple(sympy.S.Zero if size == 1 else i for size, i in zip(self.shape, mine, strict=True)))


class Formulas:
    """Formulas of the tensors of one graph."""

    def __init__(self) -> None:
        self._leaves = 0
        self._known: dict[Node, Elements] = {}

    def known(self) -> list[tuple[Node, Elements]]:
        """Every tensor that was asked for, and those that it is computed from: inputs before results."""
        return list(self._known.items())

    def of(self, node: Node) -> Elements:
        """The formula of a node that yields one tensor."""
        if node not in self._known:
            rule = _RULES.get(node.target) if node.op == "call_function" else None
            found = None if rule is None else rule(self, node)
            self._known[node] = found or self._leaf(node)
        return self._known[node]

    def scalar_or(self, value: object) -> Elements:
        """The formula of an argument: a tensor, or a number."""
        if isinstance(value, Node) and isinstance(value.meta.get("val"), torch.Tensor):
            return self.of(value)
        number = _number(value)
        return Elements((), lambda index: number)

    def _leaf(self, node: Node) -> Elements:
        function = sympy.Function(f"leaf{self._leaves}", integer=True)
        self._leaves += 1
        is_bool = node.meta["val"].dtype == torch.bool
        return Elements(shape_of(node), lambda index: sympy.Ne(function(*index), 0) if is_bool else function(*index))


def shape_of(node: Node) -> Index:
    """Sizes of a node's tensor as formulas."""
    return tuple(sympy.sympify(expression(size)) for size in node.meta["val"].shape)


def _number(value: object) -> Any:
    if isinstance(value, Node):
        value = value.meta.get("val")
    found = expression(value)
    if isinstance(found, bool):
        return sympy.true if found else sympy.false
    return sympy.sympify(found)


def _is_exact(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype in _EXACT


def _numbers_only(node: Node) -> bool:
    """Whether the tensors that a call takes hold integers, not truth values."""
    values = [source.meta.get("val") for source in node.all_input_nodes]
    return all(v.dtype in _EXACT and v.dtype != torch.bool for v in values if isinstance(v, torch.Tensor))


Rule = Callable[[Formulas, Node], "Elements | None"]
_RULES: dict[Any, Rule] = {}


def _rule(*targets: Any) -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(targets, function))
        return function

    return add


@_rule(aten.arange.start_step, aten.arange.default, aten.arange.start)
def _arange(formulas: Formulas, node: Node) -> Elements | None:
    if not _is_exact(node):
        return None
    numbers = [_number(arg) for arg in node.args]
    start = numbers[0] if len(numbers) > 1 else sympy.S.Zero
    step = numbers[2] if len(numbers) > 2 else sympy.S.One
    return Elements(shape_of(node), lambda index: start + step * index[0])


@_rule(aten.full.default, aten.scalar_tensor.default, aten.full_like.default)
def _full(formulas: Formulas, node: Node) -> Elements:
    value = _number(node.args[0] if node.target is aten.scalar_tensor.default else node.args[1])
    if node.meta["val"].dtype == torch.bool:
        value = sympy.true if value in (sympy.true, 1) else sympy.false
    return Elements(shape_of(node), lambda index: value)


@_rule(aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar, aten.mul.Tensor, aten.mul.Scalar)
def _arithmetic(formulas: Formulas, node: Node) -> Elements | None:
    if not _is_exact(node) or node.kwargs:
        return None
    if len(node.args) > 2 or not _numbers_only(node):
        return None
    left, right = (formulas.scalar_or(arg) for arg in node.args)
    name = str(node.target).split(".")[1]

    def at(index: Index) -> Any:
        a, b = left.broadcast(index), right.broadcast(index)
        return a + b if name == "add" else a - b if name == "sub" else a * b

    return Elements(shape_of(node), at)


_COMPARISONS = {"le": sympy.Le, "lt": sympy.Lt, "ge": sympy.Ge, "gt": sympy.Gt, "eq": sympy.Eq, "ne": sympy.Ne}


@_rule(*(getattr(getattr(aten, name), kind) for name in _COMPARISONS for kind in ("Tensor", "Scalar")))
def _comparison(formulas: Formulas, node: Node) -> Elements | None:
    relation = _COMPARISONS[str(node.target).split(".")[1]]
    if not _numbers_only(node):
        return None
    left, right = (formulas.scalar_or(arg) for arg in node.args)
    return Elements(shape_of(node), lambda index: decide(relation, left.broadcast(index), right.broadcast(index)))


def decide(relation: Any, left: Any, right: Any) -> Any:
    """The relation of two formulas; true or false if it is one of them in every case of a case distinction."""
    difference = sympy.piecewise_fold(sympy.expand(left - right))
    if not isinstance(difference, sympy.Piecewise):
        return relation(sympy.expand(difference), 0)
    answers = {relation(sympy.expand(value.subs(_only_value(case))), 0) for value, case in difference.args}
    return answers.pop() if len(answers) == 1 else relation(difference, 0)


def _only_value(case: Any) -> dict[Any, Any]:
    """``{i: 0}`` for the case ``i < 1`` of an index ``i``, which is a natural number."""
    for symbol in case.free_symbols:
        if symbol.is_nonnegative and symbol.is_integer and sympy.simplify(case) in (symbol < 1, symbol <= 0):
            return {symbol: sympy.S.Zero}
    return {}


@_rule(aten.bitwise_and.Tensor, aten.logical_and.default, aten.bitwise_or.Tensor, aten.logical_or.default)
def _connective(formulas: Formulas, node: Node) -> Elements | None:
    parts = [formulas.scalar_or(arg) for arg in node.args]
    if any(isinstance(arg, Node) and arg.meta["val"].dtype != torch.bool for arg in node.args):
        return None
    join = sympy.And if "and" in str(node.target) else sympy.Or
    return Elements(shape_of(node), lambda index: join(*(part.broadcast(index) for part in parts)))


@_rule(aten.bitwise_not.default, aten.logical_not.default)
def _negation(formulas: Formulas, node: Node) -> Elements | None:
    source = node.args[0]
    assert isinstance(source, Node)
    if source.meta["val"].dtype != torch.bool:
        return None
    inner = formulas.of(source)
    return Elements(shape_of(node), lambda index: sympy.Not(inner.at(index)))


@_rule(aten.where.self)
def _where(formulas: Formulas, node: Node) -> Elements:
    chosen, yes, no = (formulas.scalar_or(arg) for arg in node.args)

    def at(index: Index) -> Any:
        condition = chosen.broadcast(index)
        return (
            sympy.ITE(condition, yes.broadcast(index), no.broadcast(index))
            if is_bool
            else sympy.Piecewise((yes.broadcast(index), condition), (no.broadcast(index), True))
        )

    is_bool = node.meta["val"].dtype == torch.bool
    return Elements(shape_of(node), at)


@_rule(aten._to_copy.default, aten.clone.default, aten.alias.default)
def _same(formulas: Formulas, node: Node) -> Elements | None:
    source = node.args[0]
    assert isinstance(source, Node)
    same = source.meta["val"].dtype == node.meta["val"].dtype
    widened = _is_exact(source) and node.meta["val"].dtype == torch.int64 and source.meta["val"].dtype != torch.bool
    if same or widened:
        return formulas.of(source)
    if source.meta["val"].dtype.is_floating_point and node.meta["val"].dtype.is_floating_point:
        inner = formulas.of(source)
        return Elements(inner.shape, lambda index: _rounded(inner.at(index), node.meta["val"].dtype))
    return None


def _rounded(value: Any, dtype: torch.dtype) -> Any:
    """A number, or the numbers that a case distinction chooses from, in another precision."""
    if isinstance(value, sympy.Piecewise):
        return sympy.Piecewise(*((_rounded(each, dtype), case) for each, case in value.args))
    if value.is_number:
        return sympy.sympify(torch.tensor(float(value), dtype=torch.float64).to(dtype).item())
    return sympy.Function(f"to_{str(dtype).removeprefix('torch.')}")(value)


@_rule(aten.expand.default)
def _expand(formulas: Formulas, node: Node) -> Elements:
    inner = formulas.scalar_or(node.args[0])
    return Elements(shape_of(node), inner.broadcast)


@_rule(aten.reshape.default, aten.view.default, aten.unsqueeze.default, aten.squeeze.dims, aten.squeeze.dim)
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


@_rule(aten.permute.default)
def _permute(formulas: Formulas, node: Node) -> Elements:
    inner = formulas.scalar_or(node.args[0])
    dims: Any = node.args[1]
    places = {int(dim) % len(dims): place for place, dim in enumerate(dims)}
    return Elements(shape_of(node), lambda index: inner.at(tuple(index[places[dim]] for dim in range(len(dims)))))


@_rule(aten.slice.Tensor)
def _slice(formulas: Formulas, node: Node) -> Elements | None:
    inner = formulas.scalar_or(node.args[0])
    dim: Any = node.args[1] if len(node.args) > 1 else 0
    start = _number(node.args[2]) if len(node.args) > 2 and node.args[2] is not None else sympy.S.Zero
    step = _number(node.args[4]) if len(node.args) > 4 else sympy.S.One
    # A start beyond the end is clamped to it, but then there is no element.
    if not start.is_nonnegative:
        return None
    place = int(dim) % len(inner.shape)
    return Elements(shape_of(node), lambda i: inner.at((*i[:place], i[place] * step + start, *i[place + 1 :])))


@_rule(aten.select.int)
def _select(formulas: Formulas, node: Node) -> Elements | None:
    inner = formulas.scalar_or(node.args[0])
    dim: Any = node.args[1]
    chosen = _number(node.args[2])
    if not chosen.is_nonnegative:
        return None
    place = int(dim) % len(inner.shape)
    return Elements(shape_of(node), lambda i: inner.at((*i[:place], chosen, *i[place:])))


@_rule(aten.cat.default)
def _cat(formulas: Formulas, node: Node) -> Elements | None:
    tensors: Any = node.args[0]
    parts = [formulas.scalar_or(tensor) for tensor in tensors]
    dim: Any = node.args[1] if len(node.args) > 1 else 0
    if not _is_exact(node) or len({tensor.meta["val"].dtype for tensor in tensors}) != 1:
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


@_rule(aten.cumsum.default)
def _cumsum(formulas: Formulas, node: Node) -> Elements | None:
    """Only of zeros."""
    inner = formulas.scalar_or(node.args[0])
    index = tuple(sympy.Symbol(f"c{dim}", integer=True, nonnegative=True) for dim in range(len(inner.shape)))
    if inner.at(index) not in (sympy.false, sympy.S.Zero):
        return None
    return Elements(shape_of(node), lambda index: sympy.S.Zero)


@_rule(aten.index.Tensor)
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


@_rule(aten.tril.default, aten.triu.default)
def _triangle(formulas: Formulas, node: Node) -> Elements | None:
    if node.meta["val"].dtype != torch.bool:
        return None
    inner = formulas.scalar_or(node.args[0])
    diagonal = _number(node.args[1]) if len(node.args) > 1 else sympy.S.Zero
    relation = sympy.Le if node.target is aten.tril.default else sympy.Ge
    return Elements(
        shape_of(node), lambda index: sympy.And(inner.at(index), relation(index[-1] - index[-2] - diagonal, 0))
    )

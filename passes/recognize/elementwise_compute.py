"""Formulas of tensors that are computed: ``arange``, arithmetic on integers, comparisons, logic, casts.

A rule gives the formula of a result that it can prove to be exact, in doubt ``None``. It changes nothing.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch.fx import Node

from etcuda.passes.recognize.elementwise_values import (
    INTEGERS,
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


@rule(RULES, aten.arange.start_step, aten.arange.default, aten.arange.start)
def _arange(formulas: Formulas, node: Node) -> Elements | None:
    if not is_exact(node):
        return None
    numbers = [number(arg) for arg in node.args]
    start = numbers[0] if len(numbers) > 1 else sympy.S.Zero
    step = numbers[2] if len(numbers) > 2 else sympy.S.One
    return Elements(shape_of(node), lambda index: start + step * index[0])


@rule(RULES, aten.full.default, aten.scalar_tensor.default, aten.full_like.default)
def _full(formulas: Formulas, node: Node) -> Elements:
    value = number(node.args[0] if node.target is aten.scalar_tensor.default else node.args[1])
    if node.meta["val"].dtype == torch.bool:
        value = sympy.true if value in (sympy.true, 1) else sympy.false
    return Elements(shape_of(node), lambda index: value)


@rule(RULES, aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar, aten.mul.Tensor, aten.mul.Scalar)
def _arithmetic(formulas: Formulas, node: Node) -> Elements | None:
    if not is_exact(node) or node.kwargs:
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


@rule(RULES, *(getattr(getattr(aten, name), overload) for name in _COMPARISONS for overload in ("Tensor", "Scalar")))
def _comparison(formulas: Formulas, node: Node) -> Elements | None:
    relation = _COMPARISONS[str(node.target).split(".")[1]]
    if not _numbers_only(node):
        return None
    left, right = (formulas.scalar_or(arg) for arg in node.args)
    return Elements(shape_of(node), lambda index: _decide(relation, left.broadcast(index), right.broadcast(index)))


def _decide(relation: Any, left: Any, right: Any) -> Any:
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


@rule(RULES, aten.bitwise_and.Tensor, aten.logical_and.default, aten.bitwise_or.Tensor, aten.logical_or.default)
def _connective(formulas: Formulas, node: Node) -> Elements | None:
    parts = [formulas.scalar_or(arg) for arg in node.args]
    if any(isinstance(arg, Node) and arg.meta["val"].dtype != torch.bool for arg in node.args):
        return None
    join = sympy.And if "and" in str(node.target) else sympy.Or
    return Elements(shape_of(node), lambda index: join(*(part.broadcast(index) for part in parts)))


@rule(RULES, aten.bitwise_not.default, aten.logical_not.default)
def _negation(formulas: Formulas, node: Node) -> Elements | None:
    source = node.args[0]
    assert isinstance(source, Node)
    if source.meta["val"].dtype != torch.bool:
        return None
    inner = formulas.of(source)
    return Elements(shape_of(node), lambda index: sympy.Not(inner.at(index)))


@rule(RULES, aten.where.self)
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


@rule(RULES, aten._to_copy.default, aten.clone.default, aten.alias.default)
def _same(formulas: Formulas, node: Node) -> Elements | None:
    source = node.args[0]
    assert isinstance(source, Node)
    same = source.meta["val"].dtype == node.meta["val"].dtype
    widened = is_exact(source) and node.meta["val"].dtype == torch.int64 and source.meta["val"].dtype != torch.bool
    if same or widened:
        return formulas.of(source)
    if source.meta["val"].dtype.is_floating_point and node.meta["val"].dtype.is_floating_point:
        inner = formulas.of(source)
        return Elements(inner.shape, lambda index: _cast(inner.at(index), node.meta["val"].dtype))
    return None


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """A number, or the numbers that a case distinction chooses from, in another precision."""
    if isinstance(value, sympy.Piecewise):
        return sympy.Piecewise(*((_cast(each, dtype), case) for each, case in value.args))
    if value.is_number:
        return sympy.sympify(torch.tensor(float(value), dtype=torch.float64).to(dtype).item())
    return sympy.Function(f"to_{str(dtype).removeprefix('torch.')}")(value)


@rule(RULES, aten.cumsum.default)
def _cumsum(formulas: Formulas, node: Node) -> Elements | None:
    """Only of zeros."""
    inner = formulas.scalar_or(node.args[0])
    index = tuple(sympy.Symbol(f"c{dim}", integer=True, nonnegative=True) for dim in range(len(inner.shape)))
    if inner.at(index) not in (sympy.false, sympy.S.Zero):
        return None
    return Elements(shape_of(node), lambda index: sympy.S.Zero)


@rule(RULES, aten.tril.default, aten.triu.default)
def _triangle(formulas: Formulas, node: Node) -> Elements | None:
    if node.meta["val"].dtype != torch.bool:
        return None
    inner = formulas.scalar_or(node.args[0])
    diagonal = number(node.args[1]) if len(node.args) > 1 else sympy.S.Zero
    relation = sympy.Le if node.target is aten.tril.default else sympy.Ge
    return Elements(
        shape_of(node), lambda index: sympy.And(inner.at(index), relation(index[-1] - index[-2] - diagonal, 0))
    )


def _numbers_only(node: Node) -> bool:
    """Whether the tensors that a call takes hold integers, not truth values."""
    values = [source.meta.get("val") for source in node.all_input_nodes]
    return all(v.dtype in INTEGERS and v.dtype != torch.bool for v in values if isinstance(v, torch.Tensor))

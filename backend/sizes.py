"""Sizes that are numbers only at a call: how they follow from the sizes of a delegate's inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sympy
from torch.utils._sympy import functions

from etcuda.backend.schema.generated import delegate_generated as schema

Op = schema.SizeOp
Step = tuple[int, int, int]

# What the runtime reads at most; more would be a check that costs more than it is worth.
_MAX_STEPS, _MAX_DEPTH = 256, 16

_FOLDED: dict[type, int] = {
    sympy.Add: Op.add,
    sympy.Mul: Op.multiply,
    sympy.And: Op.multiply,
    sympy.Or: Op.maximum,
    functions.Max: Op.maximum,
    functions.Min: Op.minimum,
    sympy.Max: Op.maximum,
    sympy.Min: Op.minimum,
}
_BINARY: dict[type, int] = {
    functions.FloorDiv: Op.floor_divide,
    functions.CleanDiv: Op.floor_divide,
    functions.Mod: Op.modulo,
    functions.PythonMod: Op.modulo,
    sympy.Eq: Op.equal,
    sympy.StrictLessThan: Op.less,
    sympy.LessThan: Op.less_equal,
}
_MIRRORED: dict[type, int] = {sympy.StrictGreaterThan: Op.less, sympy.GreaterThan: Op.less_equal}
_NEGATED: dict[type, int] = {sympy.Ne: Op.equal}


class _UnknownSizeError(Exception):
    """An expression cannot be computed from the inputs' sizes."""


def parse(text: str, symbols: Iterable[Any]) -> Any:
    """An expression that ``sympy.srepr`` wrote, in terms of ``symbols`` where it has their names."""
    names = (*functions.__all__, "Max", "Min")
    expression = sympy.sympify(text, locals={name: getattr(functions, name) for name in names})
    return expression.xreplace({old: new for old in expression.free_symbols for new in symbols if old.name == new.name})


class SizeTable:
    """The sizes of one delegate, in an order in which they can be computed.

    A symbol is solved from a dimension in which it stands alone or in a linear term. An expression that no symbol can
    be solved from is a size of its own: dimensions with the same expression must still be equal.

    Args:
        inputs: for each input, the sizes of its dimensions: numbers and expressions.
    """

    def __init__(self, inputs: Sequence[Sequence[Any]]) -> None:
        self.records: list[schema.SizeT] = []
        self._position: dict[Any, int] = {}
        dims = [(place, dim, size) for place, sizes in enumerate(inputs) for dim, size in enumerate(sizes)]
        pending = [(place, dim, size) for place, dim, size in dims if isinstance(size, sympy.Expr)]
        for place, dim, size in pending:
            if size.is_Symbol and size not in self._position:
                self._add(size, [(Op.input, place, dim)])
        while any(self._solve(*each) for each in pending):
            pass
        for place, dim, size in pending:
            if self.position(size) < 0:
                self._add(size, [(Op.input, place, dim)])

    def position(self, size: Any) -> int:
        """Position of a size among the records, made if it can be computed from them; -1 if it cannot."""
        if size not in self._position:
            try:
                self._add(size, self._steps(size))
            except _UnknownSizeError:
                return -1
        return self._position[size]

    def condition(self, expression: Any) -> schema.SizeT | None:
        """A condition on the sizes; ``None`` if it cannot be computed from them."""
        try:
            return _record(expression, self._steps(expression))
        except _UnknownSizeError:
            return None

    def knows(self, symbols: set[Any]) -> bool:
        """Whether all of the symbols can be computed."""
        return all(symbol in self._position for symbol in symbols)

    def _add(self, size: Any, steps: list[Step]) -> None:
        self._position[size] = len(self.records)
        self.records.append(_record(size, steps))

    def _solve(self, place: int, dim: int, size: Any) -> bool:
        """Solves a dimension for its only unknown symbol: ``(dimension - rest) / factor``."""
        unknown = [symbol for symbol in size.free_symbols if symbol not in self._position]
        if len(unknown) != 1:
            return False
        expanded = sympy.expand(size)
        factor = expanded.coeff(unknown[0], 1)
        rest = expanded - factor * unknown[0]
        if not factor.is_Integer or factor == 0 or unknown[0] in rest.free_symbols:
            return False
        steps: list[Step] = [(Op.input, place, dim)]
        if rest != 0:
            steps += [*self._steps(rest), (Op.subtract, 0, 0)]
        if factor != 1:
            steps += [(Op.constant, int(factor), 0), (Op.exact_divide, 0, 0)]
        self._add(unknown[0], steps)
        return True

    def _steps(self, expression: Any) -> list[Step]:
        steps = self._translate(expression)
        if len(steps) > _MAX_STEPS or _depth(steps) > _MAX_DEPTH:
            raise _UnknownSizeError
        return steps

    def _translate(self, expression: Any) -> list[Step]:
        kind, arguments = type(expression), expression.args
        if expression in self._position:
            return [(Op.size, self._position[expression], 0)]
        if expression.is_Integer and abs(int(expression)) < 2**63:
            return [(Op.constant, int(expression), 0)]
        if kind in _FOLDED:
            return self._fold(arguments, _FOLDED[kind])
        if kind in _BINARY:
            return self._fold(arguments, _BINARY[kind])
        if kind in _MIRRORED:
            return self._fold(arguments[::-1], _MIRRORED[kind])
        if kind in _NEGATED:
            return [*self._fold(arguments, _NEGATED[kind]), (Op.logical_not, 0, 0)]
        if kind is sympy.Not:
            return [*self._translate(arguments[0]), (Op.logical_not, 0, 0)]
        if kind is functions.Identity:
            return self._translate(arguments[0])
        if kind is functions.ModularIndexing:
            quotient = self._fold(arguments[:2], Op.floor_divide)
            return [*quotient, *self._translate(arguments[2]), (Op.modulo, 0, 0)]
        if kind in (sympy.Pow, functions.PowByNatural) and arguments[1].is_Integer and 1 <= arguments[1] <= _MAX_DEPTH:
            return self._fold([arguments[0]] * int(arguments[1]), Op.multiply)
        raise _UnknownSizeError

    def _fold(self, arguments: Sequence[Any], op: int) -> list[Step]:
        steps = self._translate(arguments[0])
        for argument in arguments[1:]:
            steps += [*self._translate(argument), (op, 0, 0)]
        return steps


def _depth(steps: list[Step]) -> int:
    depth = deepest = 0
    for op, _, _ in steps:
        taken = 0 if op in (Op.constant, Op.input, Op.size) else 1 if op == Op.logical_not else 2
        depth += 1 - taken
        deepest = max(deepest, depth)
    return deepest


def _record(expression: Any, steps: list[Step]) -> schema.SizeT:
    record = schema.SizeT()
    record.text = str(expression)
    record.steps = []
    for op, value, dim in steps:
        step = schema.SizeStepT()
        step.op, step.value, step.dim = op, value, dim
        record.steps.append(step)
    return record

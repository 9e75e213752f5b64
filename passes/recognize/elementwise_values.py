"""What integer and boolean tensors hold, as formulas of their indices.

A tensor that is built from ``arange``, sizes, comparisons and the like is a function of its indices that can be written
down; one that is not (an input, a look-up) is a function symbol. Two tensors whose formulas are equal are proven to be
equal; in doubt a tensor is a symbol. Nothing is changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch.fx import Node

from etcuda.torch_private import expression

Index = tuple[Any, ...]
Rule = Callable[["Formulas", Node], "Elements | None"]
Rules = dict[Any, Rule]
INTEGERS = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})


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
    """Formulas of the tensors of one graph.

    Args:
        rules: for an operator, the formula of its result.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._leaves = 0
        self._known: dict[Node, Elements] = {}

    def known(self) -> list[tuple[Node, Elements]]:
        """Every tensor that was asked for, and those that it is computed from: inputs before results."""
        return list(self._known.items())

    def of(self, node: Node) -> Elements:
        """The formula of a node that yields one tensor."""
        if node not in self._known:
            apply = self._rules.get(node.target) if node.op == "call_function" else None
            found = None if apply is None else apply(self, node)
            self._known[node] = found or self._leaf(node)
        return self._known[node]

    def scalar_or(self, value: object) -> Elements:
        """The formula of an argument: a tensor, or a number."""
        if isinstance(value, Node) and isinstance(value.meta.get("val"), torch.Tensor):
            return self.of(value)
        found = number(value)
        return Elements((), lambda index: found)

    def _leaf(self, node: Node) -> Elements:
        function = sympy.Function(f"leaf{self._leaves}", integer=True)
        self._leaves += 1
        is_bool = node.meta["val"].dtype == torch.bool
        return Elements(shape_of(node), lambda index: sympy.Ne(function(*index), 0) if is_bool else function(*index))


def shape_of(node: Node) -> Index:
    """Sizes of a node's tensor as formulas."""
    return tuple(sympy.sympify(expression(size)) for size in node.meta["val"].shape)


def number(value: object) -> Any:
    """The formula of a number, or of a node that yields one."""
    if isinstance(value, Node):
        value = value.meta.get("val")
    found = expression(value)
    if isinstance(found, bool):
        return sympy.true if found else sympy.false
    return sympy.sympify(found)


def rule(table: Rules, *targets: Any) -> Callable[[Rule], Rule]:
    """Declares a function to be the rule of some operators.

    Raises:
        ValueError: one of them has a rule in the table.
    """

    def add(function: Rule) -> Rule:
        for target in targets:
            if target in table:
                raise ValueError(
                    f"{target} has two rules: expected one, got {table[target]} and {function}; remove one"
                )
            table[target] = function
        return function

    return add


def is_exact(node: Node) -> bool:
    """Whether a node yields integers or truth values, on which operators are exact."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype in INTEGERS

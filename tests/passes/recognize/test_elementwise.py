"""Formulas of tensors: one rule an operator, and a symbol where nothing can be proven."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
import torch
from torch.fx import Node

from etcuda.passes.recognize import elementwise_compute, elementwise_views
from etcuda.passes.recognize.elementwise_values import Elements, Formulas, Rules, rule
from tests.partitioner.programs import export

aten = torch.ops.aten
RULES = {**elementwise_compute.RULES, **elementwise_views.RULES}
M, N = sympy.symbols("m n", integer=True, nonnegative=True)


def element(function: Any, *inputs: torch.Tensor, index: tuple[Any, ...] = (M, N)) -> Any:
    program = export(function, *inputs)
    (result,) = program.graph.output_node().args[0]  # type: ignore[misc]
    assert isinstance(result, Node)
    return Formulas(RULES).of(result).at(index)


def test_an_operator_has_one_rule() -> None:
    assert not elementwise_compute.RULES.keys() & elementwise_views.RULES.keys()
    assert len(RULES) > 40


def test_a_second_rule_is_refused() -> None:
    table: Rules = {}
    rule(table, aten.neg.default)(lambda formulas, node: None)
    with pytest.raises(ValueError, match=r"aten.neg.default has two rules: expected one, got .* remove one"):
        rule(table, aten.neg.default)(lambda formulas, node: Elements((), lambda index: 0))


def test_what_is_computed() -> None:
    table = torch.arange(12).reshape(3, 4)
    found = element(lambda x: torch.arange(4)[None, :] * 2 + torch.arange(3)[:, None] + 0 * x.shape[0], table)
    assert sympy.expand(found - (2 * N + M)) == 0


def test_what_is_moved() -> None:
    found = element(lambda x: (torch.arange(8)[2::2][None, :].expand(3, 3) + x.shape[0]).permute(1, 0), torch.ones(5))
    assert sympy.expand(found - (2 * M + 2 + 5)) == 0


def test_in_doubt_a_symbol() -> None:
    x = torch.arange(12).reshape(3, 4)
    for function in (lambda x: x.sin(), lambda x: x.cumsum(1), lambda x: x + 0.5, lambda x: x.flip(0)):
        assert isinstance(element(function, x), sympy.core.function.AppliedUndef)

"""The one table of rules."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from etcuda.partitioner.rules.base import Rule
from etcuda.partitioner.rules.convolution import ConvolutionRule
from etcuda.partitioner.rules.matmul import MatmulRule

RULES: tuple[Rule, ...] = (
    ConvolutionRule(),
    MatmulRule(),
)


def by_operator(rules: Iterable[Rule]) -> dict[torch._ops.OpOverload, Rule]:
    """Maps each operator to its rule.

    Raises:
        ValueError: two rules list the same operator.
    """
    table: dict[torch._ops.OpOverload, Rule] = {}
    for rule in rules:
        for op in rule.ops:
            if op in table:
                first, second = type(table[op]).__name__, type(rule).__name__
                raise ValueError(
                    f"operator {op} has two rules: expected one, got {first} and {second}. "
                    "Remove it from the ops of one of them."
                )
            table[op] = rule
    return table


RULE_OF = by_operator(RULES)

"""The one table of rules."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from etcuda.partitioner.rules.attention import AttentionRule
from etcuda.partitioner.rules.base import Rule
from etcuda.partitioner.rules.bytes import BitcastRule
from etcuda.partitioner.rules.convolution import ConvolutionRule
from etcuda.partitioner.rules.decomposed import LcmRule, PutRule
from etcuda.partitioner.rules.decompositions import DecompositionRule
from etcuda.partitioner.rules.embedding import EmbeddingRule
from etcuda.partitioner.rules.grouped import GroupedProductRule
from etcuda.partitioner.rules.integer_pow import IntegerPowRule
from etcuda.partitioner.rules.kernels import KernelRule
from etcuda.partitioner.rules.matmul import MatmulRule
from etcuda.partitioner.rules.quantized_weights import QuantizedEmbeddingRule, QuantizedLinearRule
from etcuda.partitioner.rules.random import DropoutRule, PhiloxRule
from etcuda.partitioner.rules.scan import CompactionRule, ScanRule, SearchRule
from etcuda.partitioner.rules.scatter import EmbeddingBagRule, IndexAddRule, IndexPutRule, ScatterRule
from etcuda.partitioner.rules.sorting import SortRule

RULES: tuple[Rule, ...] = (
    AttentionRule(),
    BitcastRule(),
    CompactionRule(),
    ConvolutionRule(),
    DecompositionRule(),
    DropoutRule(),
    EmbeddingBagRule(),
    EmbeddingRule(),
    GroupedProductRule(),
    IndexAddRule(),
    IndexPutRule(),
    IntegerPowRule(),
    KernelRule(),
    LcmRule(),
    MatmulRule(),
    PhiloxRule(),
    PutRule(),
    QuantizedEmbeddingRule(),
    QuantizedLinearRule(),
    ScanRule(),
    ScatterRule(),
    SearchRule(),
    SortRule(),
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

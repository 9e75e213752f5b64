"""Rules: one an operator, and what those say that depends on more than the operator."""

from __future__ import annotations

import pytest
import torch

from etcuda.kernels.formats.registry import formats
from etcuda.partitioner.rules.base import overloads
from etcuda.partitioner.rules.embedding import EmbeddingRule
from etcuda.partitioner.rules.quantized_weights import QuantizedEmbeddingRule, QuantizedLinearRule
from etcuda.partitioner.rules.table import RULES, by_operator

aten = torch.ops.aten


def test_an_operator_has_one_rule() -> None:
    with pytest.raises(ValueError, match=r"aten.embedding.default has two rules.*EmbeddingRule and EmbeddingRule"):
        by_operator([EmbeddingRule(), EmbeddingRule()])
    assert len(by_operator(RULES)) == sum(len(rule.ops) for rule in RULES)


def test_overloads_leave_out_those_that_write() -> None:
    found = overloads(aten.topk)
    assert aten.topk.default in found
    assert not any(op._schema.is_mutable for op in found)


def test_every_weight_format_has_its_rules() -> None:
    ops = {op for rule in (QuantizedLinearRule(), QuantizedEmbeddingRule()) for op in rule.ops}
    assert ops == {op for each in formats() for op in (each.linear_op, each.embedding_op)}
    assert torch.ops.etcuda.int8_linear.default in ops

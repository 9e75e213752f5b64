"""The registry of weight formats: what a record knows, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import etcuda.kernels  # noqa: F401  defines the operators
from etcuda.kernels.formats import registry
from etcuda.kernels.formats.int4 import INT4
from etcuda.kernels.formats.int8 import INT8
from etcuda.kernels.formats.registry import OPERATORS, by_op, find, formats, register
from etcuda.kernels.weights.int4_tensor import Int4CoalescedTensor
from etcuda.kernels.weights.int8_tensor import Int8CoalescedTensor


def test_every_format_by_name_and_by_operator() -> None:
    assert formats() == (INT4, INT8)
    assert [record.name for record in formats()] == ["int4", "int8"]
    for record in formats():
        assert find(record.name) is record
        for what in OPERATORS:
            op = getattr(record, f"{what}_op")
            assert op is getattr(torch.ops.etcuda, f"{record.name}_{what}").default
            assert by_op(op) is record
    assert by_op(torch.ops.aten.mm.default) is None
    assert by_op(torch.ops.etcuda.quantize_activation.default) is None
    assert by_op("int4_linear") is None


def test_the_tensor_subclasses() -> None:
    assert [record.tensor_type for record in formats()] == [Int4CoalescedTensor, Int8CoalescedTensor]
    assert all(record.tensor_type.format_type is record.format_type for record in formats())


def test_one_owner_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_RECORDS", dict(registry._RECORDS))
    with pytest.raises(ValueError, match=r"'int4' is registered twice: .*kernels\.formats\.int4 and elsewhere"):
        register(dataclasses.replace(INT4, owner="elsewhere"))
    with pytest.raises(KeyError, match="'int5' is not registered; expected one of: int4, int8"):
        find("int5")

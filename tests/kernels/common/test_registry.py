"""Every kernel that is registered: what its record says, and what the kernel computes in Triton's interpreter."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
from torch import Tensor
from torch._subclasses import FakeTensorMode

from etcuda.kernels.common import registry
from etcuda.kernels.common.registry import KernelRecord
from tests.kernels.common.registry_checks import SAMPLES, results
from tests.kernels.common.toy_family import ToyTuning
from tests.kernels.interpreter import BROKEN, run_checks

RECORDS = [pytest.param(record, id=record.op.split("::")[1]) for record in registry.records()]


@pytest.mark.slow
@pytest.mark.skipif(BROKEN, reason="the interpreter of this Triton fails with this NumPy")
def test_kernels_in_the_interpreter() -> None:
    run_checks("common/interpreted.py")


def test_records_are_sorted_and_can_be_found() -> None:
    names = [record.op for record in registry.records()]
    assert names == sorted(names)
    assert {
        "etcuda::attention_split", "etcuda::attention_tiled", "etcuda::gate_quantize", "etcuda::gate_reorder",
        "etcuda::int4_matmul", "etcuda::int4_matvec", "etcuda::int8_matmul", "etcuda::int8_matvec",
        "etcuda::quantize_activation", "etcuda::reorder_activation", "etcuda::rms_norm_quantize",
    } <= set(names)  # fmt: skip
    for name in names:
        assert registry.find(name).op == name
    with pytest.raises(KeyError, match=r"'etcuda::none' is not registered; expected one of: etcuda::attention_cluster"):
        registry.find("etcuda::none")


@pytest.mark.parametrize("record", RECORDS)
def test_what_a_record_says_of_its_operator(record: KernelRecord) -> None:
    assert record.owner.startswith("etcuda.kernels.")
    assert record.op == record.overload.name()
    arguments = {argument.name for argument in record.overload._schema.arguments}
    for function in (record.problem, record.reference, record.arch):
        for name, parameter in inspect.signature(function).parameters.items():
            given = parameter.default is not inspect.Parameter.empty or name in arguments
            assert given, f"{function}: the operator has no argument {name!r}"
    reason = record.refuse(record.unserved)
    assert reason, "it serves what it should not"
    assert any(character.isdigit() for character in reason), f"the actual value is not in it: {reason}"


@pytest.mark.parametrize(("record", "index"), SAMPLES)
def test_what_a_record_says_of_its_samples(record: KernelRecord, index: int) -> None:
    sample = record.samples("cpu")[index]
    assert set(sample) == {argument.name for argument in record.overload._schema.arguments}
    problem = record.problem_of(sample)
    assert type(problem) is type(record.unserved)
    assert record.refuse(problem) is None
    cost = record.cost(problem)
    assert cost.nbytes > 0
    assert cost.flops > 0
    assert cost.floor_us(1e12, 1e15) == pytest.approx(max(cost.nbytes / 1e6, cost.flops / 1e9))
    assert record.arch_of(sample) in (None, "sm_90")


@pytest.mark.parametrize(("record", "index"), SAMPLES)
def test_fake_results_are_like_those_of_the_reference(record: KernelRecord, index: int) -> None:
    sample = record.samples("cpu")[index]
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(v) if isinstance(v, Tensor) else v for name, v in sample.items()}
        fake = results(record.overload(**fakes))
    expected = results(record.compute(sample))
    assert [(tuple(t.shape), t.dtype) for t in fake] == [(tuple(t.shape), t.dtype) for t in expected]
    assert not any(tensor.isnan().any() for tensor in expected)


def changed(name: str, **changes: Any) -> KernelRecord:
    return dataclasses.replace(registry.find(name), **changes)


def test_one_owner_for_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_RECORDS", dict(registry._RECORDS))
    with pytest.raises(
        ValueError, match=r"'etcuda::attention_split' is registered twice: .*got etcuda.* and elsewhere\. Rename"
    ):
        registry.register(changed("etcuda::attention_split", owner="elsewhere"))


def test_one_family_for_a_name_of_the_tuner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_RECORDS", dict(registry._RECORDS))
    tuning = ToyTuning()
    registry.register(changed("etcuda::attention_split", op="etcuda::a", tuning=tuning, owner="first"))
    registry.register(changed("etcuda::attention_split", op="etcuda::b", tuning=tuning, owner="first"))
    with pytest.raises(ValueError, match=r"'etcuda::c'.*a tuning of its own name, got 'toy' of second, which first"):
        registry.register(changed("etcuda::attention_split", op="etcuda::c", tuning=ToyTuning(), owner="second"))

"""Checks of every kernel that is registered: test_registry.py runs them in Triton's interpreter, tests/gpu on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import etcuda.kernels  # noqa: F401  registers the kernels
from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.common.registry import KernelRecord, records
from tests.kernels.poison import Poisoned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SAMPLES = [
    pytest.param(record, index, id=f"{record.op.split('::')[1]}-{index}")
    for record in records()
    for index in range(len(record.samples("cpu")))
]
# Results that hold nothing: semaphores of a product that has none.
UNDEFINED = {("etcuda::reorder_activation", 0): (2,), ("etcuda::reorder_activation", 1): (2,)}


def results(output: Any) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)


def sample_of(record: KernelRecord, index: int) -> dict[str, Any]:
    """A sample that can run here."""
    sample = dict(record.samples(DEVICE)[index])
    arch = record.arch_of(sample)
    if DEVICE == "cuda" and arch not in (None, LocalDevice.current().arch):
        pytest.skip(f"the kernel is for {arch}")
    return sample


class RecordChecks(Poisoned):
    @pytest.mark.parametrize(("record", "index"), SAMPLES)
    def test_the_operator_is_as_the_reference_and_as_its_fake(self, record: KernelRecord, index: int) -> None:
        sample = sample_of(record, index)
        before = {name: value.clone() for name, value in sample.items() if isinstance(value, Tensor)}
        computed = results(record.overload(**sample))
        expected = results(record.compute(sample))
        assert len(computed) == len(expected)
        for at, (got, wanted) in enumerate(zip(computed, expected, strict=True)):
            assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
            if at in UNDEFINED.get((record.op, index), ()) or not got.numel():
                continue
            if got.is_floating_point():
                difference = (got.double() - wanted.double()).norm()
                assert float(difference) <= 5e-3 * float(wanted.double().norm()), f"result {at}"
            else:
                # Two kinds of arithmetic may lie on two sides of a tie.
                difference = (got.long() - wanted.long()).abs()
                assert int(difference.max()) <= 1, f"result {at}"
                assert float(difference.double().mean()) < 0.02, f"result {at}"
        for name, value in before.items():
            assert torch.equal(sample[name], value), f"{name} was written"
        with FakeTensorMode() as mode:
            fakes = {name: mode.from_tensor(v) if isinstance(v, Tensor) else v for name, v in sample.items()}
            fake = results(record.overload(**fakes))
        for one, other in zip(computed, fake, strict=True):
            assert (one.shape, one.dtype, one.stride()) == (tuple(other.shape), other.dtype, tuple(other.stride()))
            assert one.device.type == other.device.type

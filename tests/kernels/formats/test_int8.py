"""What is particular to the format of int8 weights; the rest is in test_int4.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etcuda.errors import WeightFormatError
from etcuda.kernels.formats.int8 import Int8Format


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-128, 127), min_size=32, max_size=32))
def test_integers_are_stored_as_they_are(values: list[int]) -> None:
    packed = Int8Format.pack(torch.tensor([values]))
    assert packed.dtype == torch.int8
    assert Int8Format.unpack(packed).tolist() == [values]


@pytest.mark.parametrize("value", [-129, 128])
def test_integers_that_do_not_fit(value: int) -> None:
    with pytest.raises(WeightFormatError, match=f"from -128 to 127, got 0 to {value}|from -128 to 127, got {value}"):
        Int8Format.pack(torch.tensor([0, value]))


def test_a_group_may_be_the_whole_row() -> None:
    weight_format = Int8Format(96)
    weight_format.check_size((4, 96))
    assert weight_format.components(4, 96)["scale"] == ((4, 1), torch.float16)
    assert weight_format.bits_per_weight() == 8 + 16 / 96
    with pytest.raises(WeightFormatError, match="group_size: expected one of 16, 32, 64, 128, 256, got 96"):
        weight_format.check_size((4, 192))


@pytest.mark.parametrize(
    ("group_size", "k", "words"),
    [(16, 48, "multiple of 32"), (48, 48, "multiple of 32"), (64, 96, "multiple of 64"), (100, 100, "multiple of 32")],
)
def test_sizes_that_do_not_fit(group_size: int, k: int, words: str) -> None:
    with pytest.raises(WeightFormatError, match=words):
        Int8Format(group_size).check_size((4, k))


def test_formats_that_are_none() -> None:
    with pytest.raises(WeightFormatError, match="offset"):
        Int8Format(32, "fp16", "zero_point")
    with pytest.raises(WeightFormatError, match="positive"):
        Int8Format(0)
    with pytest.raises(WeightFormatError, match="group_size with scale_storage='codes'"):
        Int8Format(512, "codes")

"""The format of int4 weights, and what it shares with that of int8 ones."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etcuda.errors import WeightFormatError
from etcuda.kernels.formats import base
from etcuda.kernels.formats.base import GroupFormat
from etcuda.kernels.formats.int4 import Int4Format
from tests.kernels.weights.weight_cases import FORMATS, INT4_FORMATS, random_components, values_one_by_one


@st.composite
def integers(draw: Any) -> torch.Tensor:
    rows, blocks = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    seed = draw(st.integers(0, 2**31))
    q = torch.randint(0, 16, (rows, blocks * 32), generator=torch.Generator().manual_seed(seed))
    return q.to(draw(st.sampled_from([torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])))


@settings(deadline=None, max_examples=60)
@given(integers())
def test_pack_is_undone_by_unpack(q: torch.Tensor) -> None:
    packed = Int4Format.pack(q)
    assert packed.dtype == torch.uint8
    assert packed.shape == (q.shape[0], q.shape[1] // 2)
    assert torch.equal(Int4Format.unpack(packed), q.to(torch.uint8))


@settings(deadline=None, max_examples=30)
@given(st.binary(min_size=16, max_size=16 * 9).filter(lambda raw: len(raw) % 16 == 0))
def test_unpack_is_undone_by_pack(raw: bytes) -> None:
    packed = torch.tensor(list(raw), dtype=torch.uint8).reshape(1, -1)
    assert torch.equal(Int4Format.pack(Int4Format.unpack(packed)), packed)


def test_words_of_a_block_are_runs_of_weights() -> None:
    # What the kernels rely on: masked words of a 16-byte load are four consecutive weights each.
    q = torch.randint(0, 16, (1, 64))
    words = Int4Format.pack(q).view(torch.int32).tolist()[0]
    for block in range(2):
        for index in range(4):
            word = words[4 * block + index] & 0xFFFFFFFF
            low = [(word & 0x0F0F0F0F) >> (8 * byte) & 0xFF for byte in range(4)]
            high = [(word >> 4 & 0x0F0F0F0F) >> (8 * byte) & 0xFF for byte in range(4)]
            first = 32 * block + 4 * index
            assert low == q[0, first : first + 4].tolist()
            assert high == q[0, first + 16 : first + 20].tolist()


def test_pack_takes_views_and_leading_dimensions() -> None:
    q = torch.randint(0, 16, (3, 64, 4)).transpose(1, 2)
    assert torch.equal(Int4Format.unpack(Int4Format.pack(q)), q.to(torch.uint8))


@pytest.mark.parametrize(
    ("q", "words"),
    [
        (torch.zeros(2, 33, dtype=torch.uint8), "multiple of 32"),
        (torch.zeros(2, 0, dtype=torch.uint8), "multiple of 32"),
        (torch.zeros(2, 32), "expected integers, got torch.float32"),
        (torch.zeros(2, 32, dtype=torch.bool), "expected integers"),
        (torch.full((2, 32), 16), "0 to 15, got 16 to 16"),
        (torch.full((2, 32), -1), "0 to 15, got -1"),
    ],
)
def test_pack_refuses(q: torch.Tensor, words: str) -> None:
    with pytest.raises(WeightFormatError, match=words):
        Int4Format.pack(q)


@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
def test_dequantize_matches_the_values_one_by_one(weight_format: GroupFormat) -> None:
    n, k = 3, 512
    components = random_components(weight_format, n, k)
    expected = values_one_by_one(weight_format, components, n, k)
    values = weight_format.dequantize(**components)
    assert values.dtype == torch.float32
    if weight_format.bits == 4 and weight_format.scale_storage != "fp32":
        assert torch.equal(values, expected.to(torch.float32))
    torch.testing.assert_close(values.double(), expected, rtol=1e-6, atol=1e-4 if weight_format.bits == 8 else 1e-6)


@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
def test_bits_per_weight_are_those_stored(weight_format: GroupFormat) -> None:
    n, k = 4, 512
    components = random_components(weight_format, n, k)
    stored = sum(tensor.numel() * tensor.element_size() for tensor in components.values())
    assert weight_format.nbytes(n, k) == stored
    assert weight_format.bits_per_weight() == 8 * stored / (n * k)


def test_bits_per_weight_of_the_readme() -> None:
    table = {
        Int4Format(32): 4.5,
        Int4Format(32, "fp16", "zero_point"): 4.75,
        Int4Format(32, "fp16", "minimum"): 5.0,
        Int4Format(32, "codes", "minimum"): 4.625,
        Int4Format(128, "fp16", "zero_point"): 4.1875,
    }
    assert {weight_format: weight_format.bits_per_weight() for weight_format in table} == table


@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
def test_the_format_is_told_from_the_stored_tensors(weight_format: GroupFormat) -> None:
    components: dict[str, Any] = dict.fromkeys(("scale", "zero", "scale_step", "zero_step"))
    components |= random_components(weight_format, 2, 512)
    del components["qdata"]
    assert type(weight_format).of(weight_format.group_size, **components) == weight_format


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((48,), "group_size: expected one of 32, 64, 128, 256, got 48"),
        ((0,), "group_size"),
        ((32, "bf16"), "scale_storage: expected one of 'fp16', 'fp32', 'codes', got 'bf16'"),
        ((32, "fp16", "floating"), "offset: expected one of"),
        ((32, "codes", "zero_point"), "got 'zero_point'"),
    ],
)
def test_formats_that_are_none(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(WeightFormatError, match=words):
        Int4Format(*arguments)


@pytest.mark.parametrize(
    ("weight_format", "n", "k", "words"),
    [
        (Int4Format(32), 0, 64, r"expected \[\*, N, K\] with every size at least 1, got \[0, 64\]"),
        (Int4Format(32), 4, 0, r"got \[4, 0\]"),
        (Int4Format(64), 4, 96, "multiple of 64.*got K = 96"),
        (Int4Format(32, "codes"), 4, 128, "multiple of 256.*got K = 128"),
    ],
)
def test_sizes_that_do_not_fit(weight_format: Int4Format, n: int, k: int, words: str) -> None:
    with pytest.raises(WeightFormatError, match=words) as raised:
        weight_format.check_size((n, k), "layer.3.weight")
    assert str(raised.value).startswith("layer.3.weight: ")


def changed(weight_format: GroupFormat, **changes: Any) -> dict[str, Any]:
    return {**random_components(weight_format, 4, 512), **changes}


_MINIMA = Int4Format(32, "codes", "minimum")


@pytest.mark.parametrize(
    ("weight_format", "changes", "words"),
    [
        (Int4Format(32), {"qdata": None}, "qdata: expected a tensor with at least 2 dimensions, got None"),
        (Int4Format(32), {"qdata": torch.zeros(4, 256)}, "qdata: expected torch.uint8.*got torch.float32"),
        (Int4Format(32), {"qdata": torch.zeros(256)}, r"at least 2 dimensions, got \(256,\)"),
        (
            Int4Format(32),
            {"qdata": torch.zeros(2, 4, 256, dtype=torch.uint8)},
            r"scale: expected shape \[2, 4, 16\] for a weight \[2, 4, 512\], got \[4, 16\]",
        ),
        (Int4Format(32), {"scale": None}, "scale: expected torch.float16.*got None"),
        (Int4Format(32), {"scale": torch.ones(4, 16)}, "scale: expected torch.float16"),
        (Int4Format(32), {"scale": torch.ones(16, 4).half()}, r"scale: expected shape \[4, 16\].*got \[16, 4\]"),
        (Int4Format(32), {"zero": torch.ones(4, 16).half()}, "zero: expected None"),
        (Int4Format(32), {"zero_step": torch.ones(4, 2).half()}, "zero_step: expected None"),
        (_MINIMA, {"scale_step": torch.ones(4, 16).half()}, "scale_step: expected shape"),
        (_MINIMA, {"zero": torch.ones(4, 16).half()}, "zero: expected torch.uint8"),
        (_MINIMA, {"scale": torch.ones(4, 16, dtype=torch.uint8, device="meta")}, "the device of qdata, cpu, got meta"),
    ],
)
def test_stored_tensors_that_do_not_fit(weight_format: GroupFormat, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(WeightFormatError, match=words) as raised:
        weight_format.check_components(changed(weight_format, **changes), "layer.weight")
    assert str(raised.value).startswith("layer.weight: ")


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("part", ["scale_step", "zero_step"])
def test_scales_that_are_not_finite(part: str, value: float) -> None:
    components = random_components(_MINIMA, 4, 512)
    _MINIMA.check_finite(components)
    components[part][2, 1] = value
    with pytest.raises(WeightFormatError, match=rf"layer.weight: {part}: expected finite.*\[2, 1\]"):
        _MINIMA.check_finite(components, "layer.weight")


@pytest.mark.parametrize("place", [None, (0, 0), (1999, 511)])
def test_scales_of_a_mapped_file_are_looked_at_in_the_file(tmp_path: pathlib.Path, place: Any) -> None:
    components = random_components(Int4Format(32), 2000, 512 * 32)
    scale = components["scale"]
    assert scale.nbytes > base._READ_WHOLE
    if place is not None:
        scale[place] = float("nan")
    scale.numpy().tofile(tmp_path / "scale")
    mapped = torch.from_file(str(tmp_path / "scale"), shared=False, size=scale.numel(), dtype=scale.dtype)
    components["scale"] = mapped.reshape(scale.shape)
    if place is None:
        Int4Format(32).check_finite(components)
        with open("/proc/self/smaps") as file:
            found = file.read().partition(str(tmp_path / "scale"))[2]
        assert found.partition("Rss:")[2].split()[0] == "0"
        return
    with pytest.raises(
        WeightFormatError, match=rf"scale: expected finite values, got nan at \[{place[0]}, {place[1]}\]"
    ):
        Int4Format(32).check_finite(components)


def test_formats_are_values() -> None:
    assert len({*INT4_FORMATS, *INT4_FORMATS}) == len(INT4_FORMATS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        INT4_FORMATS[0].group_size = 64  # type: ignore[misc]

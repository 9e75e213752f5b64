"""Several weights in one tensor [*, N, K], such as those of experts: made, dequantised, indexed and stored."""

from __future__ import annotations

import io
import pathlib
from typing import Any

import pytest
import torch
from torch.nn import functional

import etcuda
from etcuda import Int4CoalescedConfig, Int4CoalescedTensor, Int8CoalescedConfig
from etcuda.errors import WeightFormatError
from etcuda.kernels.formats.base import GroupFormat
from etcuda.kernels.formats.stored import StoredWeight
from etcuda.kernels.weights.config import quantize_tensor
from etcuda.kernels.weights.quantize import quantize_weight
from tests.kernels.weights.weight_cases import FORMATS, random_components, random_weight, values_one_by_one

SHAPE = (3, 5, 512)


@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
def test_values_are_those_of_each_weight(weight_format: GroupFormat) -> None:
    weight = random_weight(weight_format, *SHAPE)
    assert (weight.shape, weight.dim(), weight.format) == (SHAPE, 3, weight_format)
    assert weight.stored_bytes == weight_format.nbytes(*SHAPE) == 3 * weight_format.nbytes(5, 512)
    values = weight.dequantize()
    assert values.shape == SHAPE
    for expert in range(3):
        components = {name: part[expert] for name, part in weight.components.items()}
        expected = values_one_by_one(weight_format, components, 5, 512)
        torch.testing.assert_close(values[expert].double(), expected, rtol=1e-6, atol=1e-4)
        assert torch.equal(weight[expert].dequantize(), values[expert])
    stored = StoredWeight(weight_format, **weight.components)
    assert (stored.n, stored.k) == (5, 512)
    assert torch.equal(stored.dequantize(), values)


@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
def test_one_weight_is_a_view_and_serves_a_linear_layer(weight_format: GroupFormat) -> None:
    weight = random_weight(weight_format, *SHAPE)
    one = weight[1]
    assert type(one) is type(weight)
    assert (one.shape, one.activation_dtype) == ((5, 512), "exact")
    assert one.qdata.untyped_storage().data_ptr() == weight.qdata.untyped_storage().data_ptr()
    x = torch.randn(2, 512)
    expected = x @ one.dequantize().T
    torch.testing.assert_close(functional.linear(x, one), expected, rtol=1e-5, atol=1e-2)
    assert torch.equal(functional.embedding(torch.tensor([4]), weight[-1]), weight.dequantize()[-1, 4:])


def test_slices_and_several_leading_dimensions() -> None:
    weight = random_weight(FORMATS[4], 2, 3, 8, 512)
    values = weight.dequantize()
    for chosen in (weight[1], weight[1, 2], weight[:, 1], weight[0:1], weight[:, :, 2:6], weight[1, 2, 2:6], weight[:]):
        assert isinstance(chosen, Int4CoalescedTensor)
    assert torch.equal(weight[1, 2].dequantize(), values[1, 2])
    assert torch.equal(weight[:, 1].dequantize(), values[:, 1])
    assert torch.equal(weight[1, :, 2:6].dequantize(), values[1, :, 2:6])
    assert torch.equal(weight.select(1, -1).dequantize(), values.select(1, -1))


def test_what_takes_one_weight_refuses_several() -> None:
    weight = random_weight(FORMATS[4], *SHAPE)
    expected = (
        r"expected the integers of one weight \[N, K\], got those of a weight \[3, 5, 512\]. Take one of its weights"
    )
    with pytest.raises(WeightFormatError, match=f"int4_linear: qdata: {expected}"):
        functional.linear(torch.randn(2, 512), weight)
    with pytest.raises(WeightFormatError, match=f"int4_embedding: qdata: {expected}"):
        functional.embedding(torch.tensor([1]), weight)
    with pytest.raises(WeightFormatError, match=r"expected a dimension before the rows, .* got dimension 0 of"):
        weight[0][1]
    with pytest.raises(WeightFormatError, match=r"such as 0, got dimension 2 of \[3, 5, 512\]"):
        weight[:, :, :256]


def test_components_that_do_not_fit() -> None:
    components = random_components(FORMATS[4], *SHAPE)
    for change, words in (
        (
            {"scale": components["scale"][0]},
            r"scale: expected shape \[3, 5, 16\] for a weight \[3, 5, 512\], got \[5, 16\]",
        ),
        ({"zero": components["zero"][:2]}, r"zero: expected shape \[3, 5, 16\].*, got \[2, 5, 16\]"),
        ({"qdata": components["qdata"][:0]}, r"expected .* every size at least 1, got \[0, 5, 512\]"),
    ):
        with pytest.raises(WeightFormatError, match=rf"experts\.weight: {words}"):
            Int4CoalescedTensor.from_components({**components, **change}, 32, name="experts.weight")
    components["scale"][2, 1, 3] = float("nan")
    with pytest.raises(WeightFormatError, match=r"scale: expected finite values, got nan at \[2, 1, 3\]"):
        Int4CoalescedTensor.from_components(components, 32)


@pytest.mark.parametrize(
    "config",
    [
        Int4CoalescedConfig(scale_search="least_squares"),
        Int4CoalescedConfig(64, "codes", "minimum"),
        Int8CoalescedConfig(16),
    ],
    ids=str,
)
def test_quantising_is_that_of_each_weight(config: Any) -> None:
    torch.manual_seed(0)
    weight = torch.randn(2, 512, 3, 5).permute(2, 3, 0, 1)[:, :, 1]
    assert weight.shape == (3, 5, 512)
    made = quantize_tensor(weight, config)
    for expert in range(3):
        alone = quantize_weight(weight[expert], config.format(512), config.scale_search)
        one = made[expert].components
        assert one.keys() == alone.keys()
        assert all(torch.equal(one[name], alone[name]) for name in alone)


def test_files(tmp_path: pathlib.Path) -> None:
    weight = random_weight(FORMATS[-1], *SHAPE, activation_dtype="int8")
    etcuda.save_weights({"experts": weight}, tmp_path / "w")
    buffer = io.BytesIO()
    torch.save({"experts": weight}, buffer)
    buffer.seek(0)
    for loaded in (etcuda.load_weights(tmp_path / "w"), torch.load(buffer, weights_only=True)):
        found: Any = loaded["experts"]
        assert type(found) is type(weight)
        assert (found.shape, found.activation_dtype) == (SHAPE, "int8")
        assert torch.equal(found.dequantize(), weight.dequantize())
        assert torch.equal(found[2].dequantize(), weight[2].dequantize())

"""Weights so near to zero that the stored scales would not hold them: never zero without a word."""

from __future__ import annotations

import pathlib
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import IntxUnpackedToInt8Tensor

import etcuda
from etcuda import Int4CoalescedConfig, Int8CoalescedConfig
from etcuda.errors import GgufError, WeightFormatError
from etcuda.kernels.formats.base import GroupFormat
from etcuda.kernels.formats.int4 import Int4Format
from etcuda.kernels.formats.int8 import Int8Format
from etcuda.kernels.weights.convert import Affine, from_affine, from_torchao
from etcuda.kernels.weights.quantize import quantize_weight
from tests.kernels.weights.weight_cases import INT4_FORMATS

FORMATS = [*INT4_FORMATS, Int8Format(16), Int8Format(512), Int8Format(32, "codes"), Int8Format(64, "fp32")]


def _with_small_rows(size: float, *rows: int) -> Tensor:
    torch.manual_seed(0)
    weight = torch.randn(12, 512)
    for row in rows:
        weight[row] *= size / weight[row].abs().max()
    return weight


@pytest.mark.parametrize("search", ["minmax", "least_squares"])
@pytest.mark.parametrize("size", [1e-3, 1e-4, 3e-5, 1e-5, 1e-6, 1e-8, 1e-30])
@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_a_small_row_is_as_good_as_another_or_refused(form: GroupFormat, size: float, search: str) -> None:
    weight = _with_small_rows(size, 5)
    try:
        parts = quantize_weight(weight, form, search, "layer.weight")
    except WeightFormatError as problem:
        assert form.scale_storage != "fp32"
        assert size < 3e-4
        assert "layer.weight: row 5: expected scales that" in str(problem)  # noqa: PT017
        assert 'scale_storage="fp32"' in str(problem)  # noqa: PT017
        return
    assert form.scale_storage == "fp32" or size > 1e-6
    off = (form.dequantize(**parts).double() - weight.double()).norm(dim=-1) / weight.double().norm(dim=-1)
    assert float(off[5]) < 1.4 * float(off.median())


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_rows_of_zero_are_no_error(form: GroupFormat) -> None:
    weight = torch.zeros(3, 512)
    weight[1] = 1.0
    assert torch.equal(form.dequantize(**quantize_weight(weight, form))[[0, 2]], torch.zeros(2, 512))


def test_one_small_group_of_a_row() -> None:
    weight = torch.randn(4, 512)
    weight[2, 64:96] *= 1e-9
    with pytest.raises(WeightFormatError, match="row 2: expected scales that float16 holds"):
        quantize_weight(weight, Int4Format(32, "fp16", "zero_point"))
    with pytest.raises(WeightFormatError, match="row 2: expected scales that a byte holds beside the others"):
        quantize_weight(weight, Int4Format(32, "codes", "symmetric"))
    with pytest.raises(WeightFormatError, match="row 2: expected scales that a byte holds beside the others"):
        quantize_weight(weight, Int4Format(32, "codes", "minimum"))


def test_minima() -> None:
    form = Int4Format(32, "fp16", "minimum")
    # All weights of a group the same: nothing but the minimum holds them.
    weight = torch.randn(4, 512)
    weight[1] = 1e-9
    with pytest.raises(WeightFormatError, match=r"row 1: .* got 1e-09"):
        quantize_weight(weight, form)
    # A minimum, or a spread, that is nothing beside the values may go.
    weight[1] = torch.arange(512).remainder(16) + 1e-9
    weight[2] = 1 + 1e-8 * torch.arange(512).remainder(16)
    off = (form.dequantize(**quantize_weight(weight, form)) - weight).abs()
    assert float(off[1:3].max()) < 1e-2
    # A minimum in codes that is small beside the others of its 256 weights, and large beside its own group's spread.
    weight = -torch.rand(2, 512) - 1
    weight[0, :32] = -1e-4 - 1e-7 * torch.rand(32)
    with pytest.raises(WeightFormatError, match="row 0"):
        quantize_weight(weight, Int4Format(32, "codes", "minimum"))


def test_what_float32_does_not_hold() -> None:
    weight = torch.randn(4, 512)
    weight[3] = 1e-41
    with pytest.raises(WeightFormatError, match=r"row 3: expected weights that float32 holds.*lost\. Set these rows"):
        quantize_weight(weight, Int4Format(64, "fp32", "zero_point"))


def test_rows_of_several_matrices() -> None:
    weight = torch.randn(2, 3, 64)
    weight[1, 2] = 1e-9
    with pytest.raises(WeightFormatError, match=r"w: row \[1, 2\]: "):
        quantize_weight(weight, Int4Format(32), name="w")


def test_many_rows() -> None:
    with pytest.raises(WeightFormatError, match=r"w: rows 1, 2, 3, 4, 5, 6, 7, 8 and 3 more: "):
        quantize_weight(_with_small_rows(1e-9, *range(1, 12)), Int4Format(32), name="w")


@pytest.mark.parametrize("config", [Int4CoalescedConfig(), Int8CoalescedConfig(scale_search="least_squares")])
def test_a_model_with_such_a_weight_stays_as_it_is(config: Any) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    with torch.no_grad():
        model[1].weight[7] *= 1e-9
    with pytest.raises(WeightFormatError, match=r"1\.weight: row 7"):
        etcuda.quantize_weights(model, config)
    assert type(model[0].weight) is nn.Parameter
    config.scale_storage = "fp32"
    assert etcuda.quantize_weights(model, config) == ["0.weight", "1.weight"]


def test_steps_with_few_digits_do_not_cut_the_greatest_off() -> None:
    # Their step would be 1.4 of float16's least numbers: rounded down, all codes beyond 255 were cut off.
    form = Int8Format(32, "codes")
    torch.manual_seed(0)
    weight = torch.randn(64, 512)
    weight *= (127 * 255 * 1.4 * 2.0**-24) / weight.abs().amax(dim=-1, keepdim=True)
    parts = quantize_weight(weight, form)
    off = (form.dequantize(**parts) - weight).abs().amax(dim=-1) / weight.abs().amax(dim=-1)
    assert float(off.max()) < 0.006


def test_conversion_that_rounds() -> None:
    theirs = IntxUnpackedToInt8Tensor.from_hp((torch.randn(4, 64) * 1e-7).bfloat16(), (1, 32), torch.int4)
    assert from_torchao(theirs, "w").format.scale_storage == "fp32"
    with pytest.raises(WeightFormatError, match=r"w: rows 0, 1, 2, 3: .*Convert with exact=True"):
        from_torchao(theirs, "w", exact=False)


@pytest.mark.parametrize("four", [True, False])
@pytest.mark.parametrize("rows", [2, 6])
def test_conversion_names_the_rows_and_spares_zeros(four: bool, rows: int) -> None:
    most = 15 if four else 255
    q = torch.randint(0, most + 1, (6, 64))
    scale, zero = torch.full((rows, 2), 0.01), torch.full((rows, 2), 7.5)
    scale[1] = 1e-9
    affine = Affine((6, 64), lambda a, b: q[a:b], 0, most, scale, zero, None, torch.float32)
    named = "3, 4, 5" if rows == 2 else "1"
    with pytest.raises(WeightFormatError, match=rf"w: rows? {named}: "):
        from_affine(affine, "w", exact=False)
    whole = torch.full((rows, 2), 7)
    q[6 // rows : 12 // rows] = 7
    from_affine(Affine((6, 64), lambda a, b: q[a:b], 0, most, scale, whole, None, torch.float32), "w", exact=False)


def test_gguf_into_a_shorter_dtype(tmp_path: pathlib.Path) -> None:
    values = np.ones((4, 32), np.float32)
    values[2] = 1e-9
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "test")
    writer.add_tensor("weight", values)
    writer.add_tensor("bias", np.array([1e-9, 1, 2, 1e6], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(GgufError, match=r"weight: row 2: expected values that the parameter's dtype holds.*got 1e-09"):
        etcuda.load_gguf(nn.Linear(32, 4).half(), tmp_path / "m.gguf")
    model = nn.Linear(32, 4, bias=True).bfloat16()
    etcuda.load_gguf(model, tmp_path / "m.gguf")
    assert float(model.weight[2, 0]) == pytest.approx(1e-9, rel=1e-2)
    short = nn.Linear(32, 4)
    short.bias.data = short.bias.data.half()
    with pytest.raises(GgufError, match=r"bias: row 3: .* got 1e\+06"):
        etcuda.load_gguf(short, tmp_path / "m.gguf")

"""Weights that torchao quantised, as our types."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import (
    Int4Tensor,
    Int4TilePackedTo4dTensor,
    Int8DynamicActivationIntxWeightConfig,
    Int8Tensor,
    Int8WeightOnlyConfig,
    IntxUnpackedToInt8Tensor,
    IntxWeightOnlyConfig,
    PerAxis,
    PerGroup,
    PerRow,
    PerTensor,
    quantize_,
)
from torchao.quantization.quant_primitives import MappingType

import etcuda
from etcuda import Int4CoalescedTensor, Int8CoalescedTensor
from etcuda.errors import WeightFormatError
from etcuda.kernels.weights.convert import Affine, from_affine, from_torchao

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def affine_values(tensor: Any) -> Tensor:
    """Values float64 of a torchao tensor with separate integers, by (q - zero) * scale."""
    rows, columns = tensor.block_size
    shape = (tensor.shape[0] // rows, tensor.shape[1] // columns)
    scale, zero = (
        part.double().reshape(shape).repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        for part in (tensor.scale, tensor.zero_point)
    )
    values: Tensor = (tensor.qdata.double() - zero) * scale
    return values


def close(ours: Any, expected: Tensor) -> None:
    values = ours.dequantize(torch.float32).double()
    # Zero points that our format has not are minima: the product of two numbers, rounded to float32 once.
    limit = 3e-7 * float(expected.abs().max()) if ours.format.offset == "minimum" else 0.0
    torch.testing.assert_close(values, expected.float().double(), rtol=0, atol=limit)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mapping", [MappingType.SYMMETRIC, MappingType.ASYMMETRIC])
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("block", [(1, 32), (1, 192)])
def test_intx(bits: int, mapping: MappingType, block: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(6, 192) * 0.1).to(dtype)
    theirs = IntxUnpackedToInt8Tensor.from_hp(weight, block, getattr(torch, f"int{bits}"), mapping_type=mapping)
    ours = from_torchao(theirs, "layer.weight")
    assert isinstance(ours, Int4CoalescedTensor if bits <= 4 else Int8CoalescedTensor)
    assert ours.dtype == dtype
    assert ours.activation_dtype == "exact"
    close(ours, affine_values(theirs))
    symmetric = bool((theirs.zero_point == 0).all())
    assert ours.format.offset == ("symmetric" if symmetric else "zero_point" if bits <= 4 else "minimum")


def test_scales_are_as_short_as_they_can_be() -> None:
    weight = torch.randn(4, 64)
    for dtype, storage in ((torch.bfloat16, "fp16"), (torch.float16, "fp16"), (torch.float32, "fp32")):
        theirs = IntxUnpackedToInt8Tensor.from_hp(weight.to(dtype), (1, 32), torch.int4)
        assert from_torchao(theirs).format.scale_storage == storage
        rounded = from_torchao(theirs, exact=False)
        assert rounded.format.scale_storage == "fp16"
        torch.testing.assert_close(rounded.dequantize(torch.float32).double(), affine_values(theirs), rtol=5e-4, atol=0)


def test_a_scale_below_float16_stays_exact() -> None:
    theirs = IntxUnpackedToInt8Tensor.from_hp((torch.randn(4, 64) * 1e-9).bfloat16(), (1, 32), torch.int4)
    ours = from_torchao(theirs)
    assert ours.format.scale_storage == "fp32"
    close(ours, affine_values(theirs))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("granularity", [PerRow(), PerTensor(), PerGroup(32)], ids=["row", "tensor", "group"])
@pytest.mark.parametrize("mapping", [MappingType.SYMMETRIC, MappingType.ASYMMETRIC])
def test_int8(granularity: Any, mapping: MappingType, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    theirs = Int8Tensor.from_hp((torch.randn(6, 192) + 0.5).to(dtype), granularity, mapping_type=mapping)
    ours = from_torchao(theirs)
    assert isinstance(ours, Int8CoalescedTensor)
    close(ours, affine_values(theirs))


def plain_int4(n: int = 16, k: int = 256, group: int = 32, dtype: torch.dtype = torch.bfloat16) -> tuple[Any, Tensor]:
    """torchao's ``Int4Tensor`` by its documented layout, and its values."""
    q = torch.randint(-8, 8, (n, k))
    scale, zero = torch.rand(n, k // group).to(dtype), torch.randn(n, k // group).to(dtype)
    packed = ((q[:, ::2] & 0xF) | (q[:, 1::2] << 4)).to(torch.uint8).view(torch.int8)
    shape = torch.Size((n, k))
    tensor = Int4Tensor(packed, scale.t().contiguous(), zero.t().contiguous(), [1, group], shape)
    wide = [part.double().repeat_interleave(group, 1) for part in (scale, zero)]
    return tensor, q.double() * wide[0] + wide[1]


@pytest.mark.parametrize(("group", "size"), [(32, 32), (128, 128), (256, 256), (512, 256)])
def test_plain_int4(group: int, size: int) -> None:
    theirs, values = plain_int4(k=512, group=group)
    ours = from_torchao(theirs)
    assert ours.group_size == size
    assert ours.format.offset == "minimum"
    torch.testing.assert_close(ours.dequantize(torch.float32).double(), values, rtol=0, atol=1e-6)
    rounded = from_torchao(theirs, exact=False)
    assert rounded.format.scale_storage == "fp16"
    torch.testing.assert_close(rounded.dequantize(torch.float32).double(), values, rtol=0, atol=8e-3)


def tiles(n: int, k: int, group: int) -> tuple[Any, Tensor]:
    """tinygemm's tiles as its packing kernel writes them, lane by lane, and the values."""
    q = torch.zeros(-(-n // 8) * 8, -(-k // 1024) * 1024, dtype=torch.int64)
    q[:n, :k] = torch.randint(0, 16, (n, k))
    packed = torch.zeros(q.shape[0] // 8, q.shape[1] // 128, 32, 4, dtype=torch.int64)
    for lane in range(32):
        rows = q[lane // 4 :: 8]
        for word in range(4):
            for position, offset in enumerate((0, 8, 16, 24, 1, 9, 17, 25)):
                column = 32 * word + 2 * (lane % 4) + offset
                packed[:, :, lane, word] |= rows[:, column::128] << (4 * position)
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
    scale, zero = torch.rand(q.shape[0], q.shape[1] // group), torch.randn(q.shape[0], q.shape[1] // group)
    scale, zero = scale.bfloat16(), zero.bfloat16()
    both = torch.stack([scale, zero], dim=-1).transpose(0, 1).contiguous()
    tensor = Int4TilePackedTo4dTensor(packed, both, [1, group], torch.Size((n, k)))
    wide = [part.double().repeat_interleave(group, 1) for part in (scale, zero)]
    return tensor, ((q.double() - 8) * wide[0] + wide[1])[:n, :k]


@pytest.mark.parametrize(("n", "k", "group"), [(8, 1024, 32), (13, 1088, 64), (40, 256, 256)])
def test_tiles_of_tinygemm(n: int, k: int, group: int) -> None:
    theirs, values = tiles(n, k, group)
    ours = from_torchao(theirs)
    assert ours.shape == (n, k)
    assert ours.group_size == group
    torch.testing.assert_close(ours.dequantize(torch.float32).double(), values, rtol=0, atol=1e-6)


def test_models_are_converted_and_compute_the_same() -> None:
    torch.manual_seed(0)
    for config, activation in (
        (IntxWeightOnlyConfig(torch.int4, PerGroup(32)), "exact"),
        (IntxWeightOnlyConfig(torch.int8, PerAxis(0)), "exact"),
        (Int8WeightOnlyConfig(set_inductor_config=False), "exact"),
        (Int8DynamicActivationIntxWeightConfig(torch.int4, PerGroup(64)), "int8"),
    ):
        model = nn.Sequential(nn.Embedding(40, 128), nn.Linear(128, 128), nn.Linear(128, 40, bias=False)).eval()
        quantize_(model, config)
        tokens = torch.arange(40)
        expected = model(tokens)
        assert etcuda.convert_model(model) == ["1.weight", "2.weight"]
        assert isinstance(model[1].weight, Int4CoalescedTensor | Int8CoalescedTensor)
        assert model[1].weight.activation_dtype == activation
        tolerance = 1e-5 if activation == "exact" else 2e-2 * float(expected.abs().max())
        torch.testing.assert_close(model(tokens), expected, rtol=0, atol=tolerance)
        assert etcuda.convert_model(model) == []


def test_shared_weights_stay_shared() -> None:
    model = nn.Sequential(nn.Embedding(40, 128), nn.Linear(128, 40, bias=False))
    quantized = IntxUnpackedToInt8Tensor.from_hp(torch.randn(40, 128), (1, 32), torch.int4)
    model[0].weight = model[1].weight = nn.Parameter(quantized, requires_grad=False)
    assert etcuda.convert_model(model, activation_dtype="int8") == ["0.weight", "1.weight"]
    assert model[0].weight is model[1].weight
    assert model[0].weight.activation_dtype == "int8"


def scaled(tensor: Any) -> Any:
    tensor.act_pre_scale = torch.ones(tensor.shape[1])
    return tensor


def statically(tensor: Any) -> Any:
    tensor.act_quant_scale = torch.ones(1)
    return tensor


def nan_scale(tensor: Any) -> Any:
    tensor.scale[1, 0] = float("nan")
    return tensor


def intx(shape: tuple[int, int] = (4, 64), block: tuple[int, int] = (1, 32), bits: int = 4) -> Any:
    return IntxUnpackedToInt8Tensor.from_hp(torch.randn(shape), block, getattr(torch, f"int{bits}"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.randn(4, 64), "expected one of Int4Tensor, .*, got Tensor"),
        (lambda: intx(block=(1, 16)), "groups that are a multiple of one of 32, 64, 128, 256, got 16"),
        (lambda: intx((4, 80), (1, 80), 8), "multiple of 32.*got K = 80"),
        (lambda: scaled(plain_int4()[0]), "act_pre_scale: expected None"),
        (lambda: statically(Int8Tensor.from_hp(torch.randn(4, 64), PerRow())), "got a static scale"),
        (lambda: Int8Tensor.from_hp(torch.randn(2, 4, 64), PerRow()), r"expected a weight \[N, K\], got shape"),
        (lambda: nan_scale(intx()), r"scale: expected finite values, got nan at \[1, 0\]"),
    ],
)
def test_what_is_refused(make: Any, words: str) -> None:
    with pytest.raises(WeightFormatError, match=rf"layer\.weight: .*{words}"):
        from_torchao(make(), "layer.weight")


def test_a_model_with_an_unserved_type_names_the_weight() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    model[0].weight = nn.Parameter(scaled(plain_int4()[0]), requires_grad=False)
    with pytest.raises(WeightFormatError, match=r"0\.weight: act_pre_scale"):
        etcuda.convert_model(model)


def test_integers_of_other_origins() -> None:
    # What a pass that finds integers and scales in a graph calls.
    q = torch.randint(0, 256, (4, 64))
    scale, zero = torch.rand(4, 2).half(), torch.randint(0, 256, (4, 2))
    ours = from_affine(Affine((4, 64), lambda a, b: q[a:b], 0, 255, scale, zero, None, torch.float32))
    expected = (q.double() - zero.double().repeat_interleave(32, 1)) * scale.double().repeat_interleave(32, 1)
    close(ours, expected)
    with pytest.raises(WeightFormatError, match="w: expected scales for whole blocks"):
        from_affine(Affine((4, 64), lambda a, b: q[a:b], 0, 255, scale[:3], zero, None, torch.float32), "w")

"""The operators in which PT2E writes quantised models: integers from numbers, numbers from integers, and scales.

Roundings and the dtypes of what is computed on the way are eager's, so that the integers agree with its integers;
scales of bf16 and fp16 tensors are computed in fp32, as generated code does anyhow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from etcuda.passes.decompositions.record import Decomposition, accumulator, existing
from etcuda.torch_private import quantized_operators

_TINY = 1e-5  # least absolute maximum of a token, as in eager


def quantize_per_tensor(
    x: Tensor,
    scale: float | Tensor,
    zero_point: int | Tensor,
    quant_min: int | Tensor,
    quant_max: int | Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """One scale and one zero point, numbers or tensors of one element."""
    x = x.to(torch.float32)
    # A number is inverted in double precision.
    inverse = 1.0 / _number(scale, torch.float64)
    if isinstance(inverse, Tensor):
        inverse = inverse.to(torch.float32)
    return _clamp((x * inverse).round() + _number(zero_point), quant_min, quant_max).to(dtype)


def dequantize_per_tensor(
    x: Tensor,
    scale: float | Tensor,
    zero_point: int | Tensor,
    quant_min: int | Tensor,
    quant_max: int | Tensor,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
) -> Tensor:
    """One scale and one zero point, numbers or tensors of one element."""
    x = x.to(out_dtype or torch.float32)
    dtype = accumulator(x.dtype)
    return ((x - _number(zero_point, x.dtype)).to(dtype) * _number(scale, dtype)).to(x.dtype)


def quantize_per_channel(
    x: Tensor, scales: Tensor, zero_points: Tensor, axis: int, quant_min: int, quant_max: int, dtype: torch.dtype
) -> Tensor:
    """A scale and a zero point for each index of the dimension ``axis``."""
    scales, zero_points = _along(scales, axis, x), _along(zero_points, axis, x)
    return _clamp((x.to(torch.float32) * (1.0 / scales)).round() + zero_points, quant_min, quant_max).to(dtype)


def dequantize_per_channel(
    x: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
) -> Tensor:
    """A scale and a zero point for each index of the dimension ``axis``."""
    x = x.to(torch.int32)
    if zero_points is not None:
        x = x - _along(zero_points, axis, x)
    return (x * _along(scales, axis, x)).to(out_dtype or torch.float32)


def choose_qparams(x: Tensor, quant_min: int, quant_max: int, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[1] float64, [1] int64: the scale and the zero point with which a tensor fills the integers' range."""
    least, greatest = _range(x)
    scale = _scale(greatest - least, float(quant_max - quant_min), eps)
    zero_point = quant_min - (least / scale).round().to(torch.int32)
    return _one(scale).to(torch.float64), _one(zero_point.clamp(quant_min, quant_max)).to(torch.int64)


def choose_qparams_symmetric(
    x: Tensor, quant_min: int, quant_max: int, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """As ``choose_qparams``, with the zero point in the middle."""
    least, greatest = _range(x)
    scale = _scale(torch.maximum(-least, greatest), float(quant_max - quant_min) / 2, eps)
    middle = 128 if dtype == torch.uint8 else 0
    return _one(scale).to(torch.float64), torch.full((1,), middle, dtype=torch.int64, device=x.device)


def choose_qparams_per_token(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(..., 1) float64 and int64: a scale for each row of the last dimension, and zero."""
    largest = x.to(torch.float32).abs().amax(-1, keepdim=True)
    scales = (largest.clamp_min(_TINY) / 127).to(torch.float64)
    return scales, torch.zeros_like(scales, dtype=torch.int64)


def choose_qparams_per_token_asymmetric(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(..., 1) float64 and int64: a scale and a zero point for each row of the last dimension, for int8.

    The zero point is rounded from whichever end of the range has the smaller error, as in XNNPACK.
    """
    low, high = -128, 127
    x = x.to(torch.float32)
    least = x.amin(-1, keepdim=True).clamp_max(0)
    greatest = x.amax(-1, keepdim=True).clamp_min(0)
    scale = ((greatest - least) / float(high - low)).clamp_min(torch.finfo(torch.float32).eps)
    below, above = least / scale, greatest / scale
    zero_point = torch.where((low + below) + (high + above) > 0, low - below, high - above)
    return scale.to(torch.float64), zero_point.clamp(low, high).round().to(torch.int64)


def quantize_per_token(
    x: Tensor, scales: Tensor, zero_points: Tensor, quant_min: int, quant_max: int, dtype: torch.dtype
) -> Tensor:
    """A scale and a zero point for each row of the last dimension."""
    return (x * (1.0 / scales) + zero_points).round().clamp(quant_min, quant_max).to(dtype)


def dequantize_per_token(
    x: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    output_dtype: torch.dtype,
) -> Tensor:
    """A scale and a zero point for each row of the last dimension."""
    return ((x - zero_points) * scales).to(output_dtype)


def quantize_per_channel_group(
    x: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    group_size: int,
) -> Tensor:
    """(M, N), and a scale and a zero point for each ``group_size`` elements of a row."""
    groups = x.reshape(-1, _group(x, scales, group_size))
    groups = quantize_per_token(groups, scales.reshape(-1, 1), zero_points.reshape(-1, 1), quant_min, quant_max, dtype)
    return groups.reshape(x.shape)


def dequantize_per_channel_group(
    x: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    group_size: int,
    output_dtype: torch.dtype,
) -> Tensor:
    """(M, N), and a scale and a zero point for each ``group_size`` elements of a row."""
    groups = x.reshape(-1, _group(x, scales, group_size)).to(torch.int32)
    if zero_points is not None:
        groups = groups - zero_points.reshape(-1, 1)
    return (groups * scales.reshape(-1, 1)).reshape(x.shape).to(output_dtype)


def convert_element_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in another dtype."""
    return x.to(dtype, copy=True)


def _number(value: float | int | Tensor, dtype: torch.dtype | None = None) -> float | int | Tensor:
    """A number, of no dimensions if it is a tensor."""
    if not isinstance(value, Tensor):
        return value
    value = value.reshape(())
    return value if dtype is None else value.to(dtype)


def _along(values: Tensor, axis: int, x: Tensor) -> Tensor:
    shape = [1] * x.dim()
    shape[axis] = values.shape[0]
    return values.reshape(shape)


def _clamp(x: Tensor, least: int | Tensor, greatest: int | Tensor) -> Tensor:
    if isinstance(least, Tensor) or isinstance(greatest, Tensor):
        bounds = (torch.as_tensor(_number(each), device=x.device) for each in (least, greatest))
        return torch.clamp(x, *bounds)
    return x.clamp(least, greatest)


def _range(x: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest element, and 0 among them."""
    x = x.to(torch.float32)
    return x.amin().clamp_max(0), x.amax().clamp_min(0)


def _scale(width: Tensor, steps: float, eps: float) -> Tensor:
    scale = width / steps
    return torch.maximum(scale, torch.full((), eps, dtype=torch.float32, device=width.device))


def _one(value: Tensor) -> Tensor:
    return value.reshape(1)


def _group(x: Tensor, scales: Tensor, group_size: int) -> int | torch.SymInt:
    """A row of fewer elements than a group is one group."""
    width = x.shape[-1]
    return width if scales.shape[-1] == 1 and group_size > width else group_size


_FORMULAS = (
    (quantize_per_tensor, "quantize_per_tensor", "quantize_per_tensor.tensor", "quantize_per_tensor.tensor2"),
    (dequantize_per_tensor, "dequantize_per_tensor", "dequantize_per_tensor.tensor", "dequantize_per_tensor.tensor2"),
    (quantize_per_channel, "quantize_per_channel"),
    (dequantize_per_channel, "dequantize_per_channel"),
    (choose_qparams, "choose_qparams.tensor"),
    (choose_qparams_symmetric, "choose_qparams_symmetric.tensor"),
    (choose_qparams_per_token, "choose_qparams_per_token"),
    (
        choose_qparams_per_token_asymmetric,
        "choose_qparams_per_token_asymmetric",
        "_choose_qparams_per_token_asymmetric_impl",
    ),
    (quantize_per_token, "quantize_per_token"),
    (dequantize_per_token, "dequantize_per_token"),
    (quantize_per_channel_group, "quantize_per_channel_group"),
    (dequantize_per_channel_group, "dequantize_per_channel_group"),
    (convert_element_type, "convert_element_type.no_fuse"),
)

DECOMPOSITIONS = tuple(Decomposition(existing(quantized_operators(), *names), formula) for formula, *names in _FORMULAS)

"""Coding of vectors in plain PyTorch: what the kernels compute, and what programs for the host are compiled from."""

from __future__ import annotations

import torch
from torch import Tensor

from etcuda.kernels.quantized_cache.formats import (
    CODE_DTYPE,
    FORMATS,
    GREATEST_FP8,
    GREATEST_INT8,
    LEVELS,
    SCALE_DTYPE,
    THRESHOLDS,
)
from etcuda.kernels.quantized_cache.rotation import hadamard, signs

# Exponents of e4m3 and of fp32 are biased by 7 and 127; 20 bits of fp32's mantissa have no place in e4m3.
_BIAS, _DROPPED = 120, 20


def encode(x: Tensor, format: str) -> tuple[Tensor, Tensor]:
    """Codes vectors.

    Args:
        x: [..., head_dim] floating.
        format: a name of ``FORMATS``.

    Returns:
        Codes [..., width] uint8 and scales [...] bfloat16.
    """
    x = x.to(torch.float32)
    if format == "tq4":
        length = x.square().sum(-1, keepdim=True).sqrt()
        turned = hadamard(x * signs(int(x.shape[-1]), x.device))
        nibbles = _nearest(torch.where(length > 0, turned / torch.where(length > 0, length, 1.0), 0.0))
        codes = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
        return codes.to(CODE_DTYPE), length[..., 0].to(SCALE_DTYPE)
    greatest = GREATEST_INT8 if format == "int8" else GREATEST_FP8
    scale = (x.abs().amax(-1, keepdim=True) * (1.0 / greatest)).to(SCALE_DTYPE)
    wide = scale.to(torch.float32)
    x = torch.where(wide > 0, x / torch.where(wide > 0, wide, 1.0), 0.0).clamp(-greatest, greatest)
    codes = x.round().to(torch.int32) + 128 if format == "int8" else _to_e4m3(x)
    return codes.to(CODE_DTYPE), scale[..., 0]


def decode(codes: Tensor, scale: Tensor, format: str) -> Tensor:
    """The vectors [..., head_dim] fp32 of codes [..., width] and scales [...]; those of ``tq4`` rotated."""
    codes = codes.to(torch.int32)
    wide = scale.to(torch.float32).unsqueeze(-1)
    if format == "int8":
        return (codes - 128).to(torch.float32) * wide
    if format == "fp8":
        return _from_e4m3(codes) * wide
    nibbles = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)
    return _levels(nibbles) * (wide * float(nibbles.shape[-1] ** -0.5))


def width_of(codes: Tensor, format: str) -> int:
    """head_dim of the vectors whose codes are [..., width]."""
    return int(codes.shape[-1]) * 8 // FORMATS[format].bits


def _nearest(x: Tensor) -> Tensor:
    """Codes int32 of numbers with variance 1."""
    magnitude = x.abs()
    index = (magnitude >= THRESHOLDS[0]).to(torch.int32)
    for threshold in THRESHOLDS[1:]:
        index = index + (magnitude >= threshold).to(torch.int32)
    return torch.where(x < 0, 7 - index, 8 + index)


def _levels(nibbles: Tensor) -> Tensor:
    index = torch.where(nibbles >= 8, nibbles - 8, 7 - nibbles)
    value = torch.full_like(nibbles, LEVELS[0], dtype=torch.float32)
    for place, level in enumerate(LEVELS[1:], 1):
        value = torch.where(index == place, level, value)
    return torch.where(nibbles >= 8, value, -value)


def _to_e4m3(x: Tensor) -> Tensor:
    """Codes int32 of numbers from -448 to 448, halves to even."""
    magnitude = x.abs()
    bits = magnitude.view(torch.int32)
    normal = ((bits + 0x7FFFF + ((bits >> _DROPPED) & 1)) >> _DROPPED) - (_BIAS << 3)
    small = (magnitude * 512.0).round().to(torch.int32)
    return torch.where(magnitude < 2.0**-6, small, normal) | ((x < 0).to(torch.int32) << 7)


def _from_e4m3(codes: Tensor) -> Tensor:
    magnitude = codes & 0x7F
    normal = ((magnitude << _DROPPED) + (_BIAS << 23)).view(torch.float32)
    value = torch.where(magnitude < 8, magnitude.to(torch.float32) * 2.0**-9, normal)
    return torch.where(codes >= 128, -value, value)

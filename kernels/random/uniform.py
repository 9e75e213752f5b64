"""Uniform numbers: the same bits on every device, since each step is exact or rounded once."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

Size = Sequence[int]

# Of each dtype the bits of a number in [0, 1): as many as it has next to 1, so that none is rounded to 1.
_BITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def bits(state: Tensor, draw: int, size: Size, count: int, word: int = 0) -> Tensor:
    """Random bits: ``size`` int64, each from 0 to 2**count - 1. See ``etcuda::philox_bits``."""
    made: Tensor = torch.ops.etcuda.philox_bits(state, draw, size, count, word)
    return made


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a distribution computes in: float64 for itself, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def parameter(value: float | Tensor, like: Tensor) -> Tensor:
    """A number as a tensor without dimensions, in the dtype of ``like``; a tensor is returned as it is.

    ExecuTorch makes float32 of the numbers that stand in a graph's arithmetic.
    """
    return value if isinstance(value, Tensor) else torch.full([], value, dtype=like.dtype, device=like.device)


def unit(state: Tensor, draw: int, size: Size, dtype: torch.dtype = torch.float32, word: int = 0) -> Tensor:
    """Numbers in [0, 1), all multiples of 2**-n equally likely: n is 53, 24, 11, 8 for fp64, fp32, fp16, bf16.

    Args:
        state: [2] int64, the seed and the offset.
        draw: number of the draw.
        size: shape of the result.
        dtype: of the result.
        word: of the block, 0 or 2.
    """
    count = _BITS[dtype]
    return (bits(state, draw, size, count, word).to(computed_in(dtype)) * 2.0**-count).to(dtype)


def open_unit(state: Tensor, draw: int, size: Size, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers in (0, 1), finer near 0: float32 from 2**-33 to 1 - 2**-24, float64 from 2**-53 on."""
    count = 52 if dtype == torch.float64 else 32
    made = (bits(state, draw, size, count).to(dtype) + 0.5) * 2.0**-count
    return made if dtype == torch.float64 else made.clamp(max=1 - 2.0**-24)


def uniform(
    state: Tensor, size: Size, low: float = 0.0, high: float = 1.0, dtype: torch.dtype = torch.float32, draw: int = 0
) -> Tensor:
    """Numbers in [low, high). In fp16 and bf16, ``high`` itself may come from rounding.

    Args:
        state: [2] int64, the seed and the offset.
        size: shape of the result.
        low: least number.
        high: greater than ``low``, or equal to it.
        dtype: of the result.
        draw: number of the draw, added to the offset: other numbers for each.
    """
    if (low, high) == (0.0, 1.0):
        return unit(state, draw, size, dtype)
    if dtype == torch.float64:
        made = unit(state, draw, size, dtype)
        made = made * parameter(high - low, made) + parameter(low, made)
    else:
        # A product of 24 bits by 24 bits is exact, so that it does not matter whether a compiler fuses it with the sum.
        wide = unit(state, draw, size).to(torch.float64)
        made = (wide * parameter(_to_float32(high - low), wide) + parameter(low, wide)).to(torch.float32)
    return torch.where(made >= parameter(high, made), parameter(low, made), made).to(dtype)


def _to_float32(value: float) -> float:
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


def randint(
    state: Tensor,
    low: int,
    high: int,
    size: Size,
    dtype: torch.dtype = torch.int64,
    draw: int = 0,
) -> Tensor:
    """Integers in [low, high), the same on every device.

    None is likelier than another by more than a factor of 1 + (high - low) * 2**-62.

    Args:
        state: [2] int64, the seed and the offset.
        low: least integer.
        high: greater than ``low``, by less than 2**62.
        size: shape of the result.
        dtype: of the result, which must hold them.
        draw: number of the draw, added to the offset.
    """
    made: Tensor = torch.ops.etcuda.philox_below(state, draw, size, high - low)
    return (made + low).to(dtype)

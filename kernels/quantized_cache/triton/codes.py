"""Coding and decoding on the device; see ``formats.py``. FORMAT: 0 int8, 1 fp8, 2 tq4.

Codes are loaded in words of 16 bits, two or four codes each, so that the compiler's moves of 16-bit numbers into the
layout of a product serve for them. For bfloat16 and float16 a pair of words becomes a pair of numbers by arithmetic on
pairs: 2 to 4 instructions a number less than conversions, which would take longer than the loads. Triton's interpreter,
and float32, take the plain formulas. In bfloat16 the levels of ``tq4`` are within 0.6% of those of the format.
"""

from __future__ import annotations

import triton
import triton.language as tl

from etcuda.kernels.common.blocks import INTERPRETED, MAGIC, MAGIC_BITS
from etcuda.kernels.quantized_cache.triton.to_bf16 import (
    fp8_0_to_bf16,
    fp8_1_to_bf16,
    int8_0_to_bf16,
    int8_1_to_bf16,
    nibble0_to_bf16,
    nibble1_to_bf16,
    nibble2_to_bf16,
    nibble3_to_bf16,
)
from etcuda.kernels.quantized_cache.triton.to_fp16 import (
    fp8_0_to_fp16,
    fp8_1_to_fp16,
    int8_0_to_fp16,
    int8_1_to_fp16,
    nibble0_to_fp16,
    nibble1_to_fp16,
    nibble2_to_fp16,
    nibble3_to_fp16,
)

PLAIN = tl.constexpr(bool(INTERPRETED))


@triton.jit
def plain_levels(nibbles):
    """The levels of ``tq4``, fp32, of codes int32."""
    index = tl.where(nibbles >= 8, nibbles - 8, 7 - nibbles)
    value = tl.where(index == 1, 0.373046875, 0.122314453125)
    value = tl.where(index == 2, 0.6416015625, value)
    value = tl.where(index == 3, 0.93994140625, value)
    value = tl.where(index == 4, 1.28125, value)
    value = tl.where(index == 5, 1.67578125, value)
    value = tl.where(index == 6, 2.13671875, value)
    value = tl.where(index == 7, 2.67578125, value)
    return tl.where(nibbles >= 8, value, -value)


@triton.jit
def plain_bytes(codes, FORMAT: tl.constexpr):
    """The numbers of ``int8`` or ``fp8``, fp32, of codes int32."""
    if FORMAT == 0:
        return (codes - 128).to(tl.float32)
    else:
        magnitude = codes & 127
        normal = ((magnitude << 20) + (120 << 23)).to(tl.float32, bitcast=True)
        value = tl.where(magnitude < 8, magnitude.to(tl.float32) * 0.001953125, normal)
        return tl.where(codes >= 128, -value, value)


@triton.jit
def from_nibbles(words, DTYPE: tl.constexpr):
    """Words uint16 to the numbers of each of their four codes."""
    if PLAIN or tl.float32 == DTYPE:
        wide = words.to(tl.int32)
        a, b = plain_levels(wide & 15).to(DTYPE), plain_levels((wide >> 4) & 15).to(DTYPE)
        c, d = plain_levels((wide >> 8) & 15).to(DTYPE), plain_levels(wide >> 12).to(DTYPE)
    elif tl.bfloat16 == DTYPE:
        a, b = nibble0_to_bf16(words), nibble1_to_bf16(words)
        c, d = nibble2_to_bf16(words), nibble3_to_bf16(words)
    else:
        a, b = nibble0_to_fp16(words), nibble1_to_fp16(words)
        c, d = nibble2_to_fp16(words), nibble3_to_fp16(words)
    return a, b, c, d


@triton.jit
def from_bytes(words, FORMAT: tl.constexpr, DTYPE: tl.constexpr):
    """Words uint16 to the numbers of both codes; in float16 over 128 (``int8``) or 256 (``fp8``), so that products
    fit."""
    if PLAIN or tl.float32 == DTYPE:
        wide = words.to(tl.int32)
        a, b = plain_bytes(wide & 255, FORMAT), plain_bytes(wide >> 8, FORMAT)
        if tl.float16 == DTYPE:
            a *= 0.0078125 if FORMAT == 0 else 0.00390625
            b *= 0.0078125 if FORMAT == 0 else 0.00390625
        a, b = a.to(DTYPE), b.to(DTYPE)
    elif FORMAT == 0:
        if tl.bfloat16 == DTYPE:
            a, b = int8_0_to_bf16(words), int8_1_to_bf16(words)
        else:
            a, b = int8_0_to_fp16(words), int8_1_to_fp16(words)
    elif tl.bfloat16 == DTYPE:
        a, b = fp8_0_to_bf16(words), fp8_1_to_bf16(words)
    else:
        a, b = fp8_0_to_fp16(words), fp8_1_to_fp16(words)
    return a, b


@triton.jit
def to_nibbles(x):
    """Codes int32 of ``tq4`` of numbers with variance 1, fp32."""
    magnitude = tl.abs(x)
    index = (magnitude >= 0.2476806640625).to(tl.int32) + (magnitude >= 0.50732421875).to(tl.int32)
    index += (magnitude >= 0.790771484375).to(tl.int32) + (magnitude >= 1.110595703125).to(tl.int32)
    index += (magnitude >= 1.478515625).to(tl.int32) + (magnitude >= 1.90625).to(tl.int32)
    index += (magnitude >= 2.40625).to(tl.int32)
    return tl.where(x < 0, 7 - index, 8 + index)


@triton.jit
def to_bytes(x, FORMAT: tl.constexpr):
    """Codes int32 of ``int8`` or ``fp8`` of numbers within what those hold, fp32; halves go to even."""
    if FORMAT == 0:
        return (x + MAGIC).to(tl.int32, bitcast=True) - MAGIC_BITS + 128
    else:
        magnitude = tl.abs(x)
        bits = magnitude.to(tl.int32, bitcast=True)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - 960
        small = (magnitude * 512.0 + MAGIC).to(tl.int32, bitcast=True) - MAGIC_BITS
        return tl.where(magnitude < 0.015625, small, normal) | ((x < 0).to(tl.int32) << 7)

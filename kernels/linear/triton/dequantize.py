"""Weights of int4 and int8 become fp16 in registers, in the order of K that a tensor core reads from there.

../README.md derives the order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from etcuda.kernels.common.blocks import INTERPRETED

# Weights are multiplied by it before they are rounded to fp16, so that small ones stay normal numbers.
WEIGHT_FACTOR = tl.constexpr(16.0)

if INTERPRETED:

    @triton.jit
    def _half(bits):
        return bits.to(tl.int16).to(tl.float16, bitcast=True)

    @triton.jit
    def _weight(word, shift: tl.constexpr, shifted, times, plus, MINIMUM: tl.constexpr):
        q = ((word >> shift) & 0xF).to(tl.float16)
        times = _half(times)
        if MINIMUM:
            value = q.to(tl.float32) * times.to(tl.float32) + _half(plus).to(tl.float32)
            value = value.to(tl.float16)
        else:
            value = (q - (_half(shifted) - 1024.0)) * times
        return value.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF

    @triton.jit
    def dequantize_words(word, shifted, times, plus, MINIMUM: tl.constexpr):
        """Eight int4 of a word as four pairs of fp16: low halves of bytes 0 and 2, of 1 and 3, high halves likewise."""
        low_even = _weight(word, 0, shifted, times, plus, MINIMUM) | (
            _weight(word, 16, shifted, times, plus, MINIMUM) << 16
        )
        low_odd = _weight(word, 8, shifted, times, plus, MINIMUM) | (
            _weight(word, 24, shifted, times, plus, MINIMUM) << 16
        )
        high_even = _weight(word, 4, shifted, times, plus, MINIMUM) | (
            _weight(word, 20, shifted, times, plus, MINIMUM) << 16
        )
        high_odd = _weight(word, 12, shifted, times, plus, MINIMUM) | (
            _weight(word, 28, shifted, times, plus, MINIMUM) << 16
        )
        return low_even, low_odd, high_even, high_odd

    @triton.jit
    def _byte(word, shift: tl.constexpr, times, plus, MINIMUM: tl.constexpr):
        q = ((word << (24 - shift)) >> 24).to(tl.float16)
        if MINIMUM:
            value = q.to(tl.float32) * _half(times).to(tl.float32) + _half(plus).to(tl.float32)
            value = value.to(tl.float16)
        else:
            value = q * _half(times)
        return value.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF

    @triton.jit
    def dequantize_bytes(word, times, plus, MINIMUM: tl.constexpr):
        """Four int8 of a word as two pairs of fp16."""
        first = _byte(word, 0, times, plus, MINIMUM) | (_byte(word, 8, times, plus, MINIMUM) << 16)
        second = _byte(word, 16, times, plus, MINIMUM) | (_byte(word, 24, times, plus, MINIMUM) << 16)
        return first, second

else:

    @triton.jit
    def dequantize_bytes(word, times, plus, MINIMUM: tl.constexpr):
        """Four int8 of a word as two pairs of fp16; 128 more than each is the low byte of 1152 + q."""
        if MINIMUM:
            return tl.inline_asm_elementwise(
                """{
                .reg .b32 w, c;
                xor.b32 w, $2, 0x80808080;
                mov.b32 c, 0x64806480;
                prmt.b32 $0, w, 0x64646464, 0x4140;
                prmt.b32 $1, w, 0x64646464, 0x4342;
                sub.rn.f16x2 $0, $0, c;
                sub.rn.f16x2 $1, $1, c;
                fma.rn.f16x2 $0, $0, $3, $4;
                fma.rn.f16x2 $1, $1, $3, $4;
                }""",
                "=&r,=&r,r,r,r",
                [word, times, plus],
                dtype=(tl.int32, tl.int32),
                is_pure=True,
                pack=1,
            )
        else:
            return tl.inline_asm_elementwise(
                """{
                .reg .b32 w, c;
                xor.b32 w, $2, 0x80808080;
                mov.b32 c, 0x64806480;
                prmt.b32 $0, w, 0x64646464, 0x4140;
                prmt.b32 $1, w, 0x64646464, 0x4342;
                sub.rn.f16x2 $0, $0, c;
                sub.rn.f16x2 $1, $1, c;
                mul.rn.f16x2 $0, $0, $3;
                mul.rn.f16x2 $1, $1, $3;
                }""",
                "=&r,=&r,r,r,r",
                [word, times, plus],
                dtype=(tl.int32, tl.int32),
                is_pure=True,
                pack=1,
            )

    @triton.jit
    def dequantize_words(word, shifted, times, plus, MINIMUM: tl.constexpr):
        """Eight int4 of a word as four pairs of fp16: low halves of bytes 0 and 2, of 1 and 3, high halves likewise.

        The bits 0x6400 make an integer q in the low bits 1024 + q in fp16, and 1024 + 16 q in the next four bits; both
        subtractions are exact (Frantar et al., MARLIN, 2024).
        """
        if MINIMUM:
            return tl.inline_asm_elementwise(
                """{
                .reg .b32 w, b, c;
                lop3.b32 $0, $4, 0x000f000f, 0x64006400, 0xea;
                lop3.b32 $2, $4, 0x00f000f0, 0x64006400, 0xea;
                shr.u32 w, $4, 8;
                lop3.b32 $1, w, 0x000f000f, 0x64006400, 0xea;
                lop3.b32 $3, w, 0x00f000f0, 0x64006400, 0xea;
                mov.b32 b, 0x2c002c00;
                mov.b32 c, 0xd400d400;
                mov.b32 w, 0x64006400;
                sub.rn.f16x2 $0, $0, w;
                sub.rn.f16x2 $1, $1, w;
                fma.rn.f16x2 $2, $2, b, c;
                fma.rn.f16x2 $3, $3, b, c;
                fma.rn.f16x2 $0, $0, $6, $7;
                fma.rn.f16x2 $1, $1, $6, $7;
                fma.rn.f16x2 $2, $2, $6, $7;
                fma.rn.f16x2 $3, $3, $6, $7;
                }""",
                "=&r,=&r,=&r,=&r,r,r,r,r",
                [word, shifted, times, plus],
                dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
                is_pure=True,
                pack=1,
            )
        else:
            # ``plus`` holds 64 + zero, which is 1024 + zero less 960.
            return tl.inline_asm_elementwise(
                """{
                .reg .b32 w, b;
                lop3.b32 $0, $4, 0x000f000f, 0x64006400, 0xea;
                lop3.b32 $2, $4, 0x00f000f0, 0x64006400, 0xea;
                shr.u32 w, $4, 8;
                lop3.b32 $1, w, 0x000f000f, 0x64006400, 0xea;
                lop3.b32 $3, w, 0x00f000f0, 0x64006400, 0xea;
                mov.b32 b, 0x2c002c00;
                sub.rn.f16x2 $0, $0, $5;
                sub.rn.f16x2 $1, $1, $5;
                fma.rn.f16x2 $2, $2, b, $7;
                fma.rn.f16x2 $3, $3, b, $7;
                mul.rn.f16x2 $0, $0, $6;
                mul.rn.f16x2 $1, $1, $6;
                mul.rn.f16x2 $2, $2, $6;
                mul.rn.f16x2 $3, $3, $6;
                }""",
                "=&r,=&r,=&r,=&r,r,r,r,r",
                [word, shifted, times, plus],
                dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
                is_pure=True,
                pack=1,
            )


@triton.jit
def _twice(half):
    """A number of fp16 in both halves of a word."""
    bits = half.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return bits | (bits << 16)


@triton.jit
def _halves(pair):
    """The two numbers of fp16 of a word, on a new last axis."""
    low = pair.to(tl.int16).to(tl.float16, bitcast=True)
    high = (pair >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return tl.join(low, high)


@triton.jit
def _spread(scale, SHAPE: tl.constexpr):
    """[rows, blocks] to [rows, units, 4, words of a block]."""
    return tl.broadcast_to(tl.reshape(scale, [SHAPE[0], SHAPE[1], SHAPE[2]])[:, :, :, None], SHAPE)


@triton.jit
def _spread_pairs(scale, SHAPE: tl.constexpr):
    """[rows, groups of 16] likewise."""
    pairs = tl.reshape(scale, [SHAPE[0], SHAPE[1], SHAPE[2], 2])[:, :, :, :, None]
    shape: tl.constexpr = [SHAPE[0], SHAPE[1], SHAPE[2], 2, SHAPE[3] // 2]
    return tl.reshape(tl.broadcast_to(pairs, shape), SHAPE)


@triton.jit
def dequantize(
    words, s, z, ss, zs, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, SCALE_CODES: tl.constexpr
):  # fmt: skip
    """Weights times WEIGHT_FACTOR in fp16 [BLOCK_N, 32 * blocks], K as ``reorder_kernel`` orders it.

    ``words`` [BLOCK_N, BITS * blocks]; what scales them [BLOCK_N, blocks], twice as wide for groups of 16.
    """
    ROWS: tl.constexpr = words.shape[0]
    UNITS: tl.constexpr = words.shape[1] // (4 * BITS)
    SHAPE: tl.constexpr = [ROWS, UNITS, 4, BITS]
    s = s.to(tl.float32) * WEIGHT_FACTOR
    if SCALE_CODES:
        s = s * ss.to(tl.float32)
    times = _twice(s.to(tl.float16))
    if OFFSET == "minimum":
        m = z.to(tl.float32) * WEIGHT_FACTOR
        if SCALE_CODES:
            m = -m * zs.to(tl.float32)
        plus = _twice(m.to(tl.float16))
        shifted = plus
    elif OFFSET == "zero_point":
        # The bits of 1024 + zero, and from them -(64 + zero).
        bits = z.to(tl.int32) | 0x6400
        shifted = bits | (bits << 16)
        plus = _twice(960.0 - bits.to(tl.int16).to(tl.float16, bitcast=True))
    else:
        shifted = tl.full(s.shape, 0x64086408, tl.int32)
        plus = tl.full(s.shape, -729754496, tl.int32)  # 0xd480d480, -72 twice
    grid = tl.reshape(words, SHAPE)
    if GROUP < 32:
        times = _spread_pairs(times, SHAPE)
        plus = _spread_pairs(plus, SHAPE)
    else:
        times = _spread(times, SHAPE)
        plus = _spread(plus, SHAPE)
    if BITS == 4:
        shifted = _spread(shifted, SHAPE)
        low_even, low_odd, high_even, high_odd = dequantize_words(grid, shifted, times, plus, OFFSET == "minimum")
        low = tl.join(_halves(low_even), _halves(low_odd))
        high = tl.join(_halves(high_even), _halves(high_odd))
        # Axes: row, unit, block, word, half of a pair, even or odd, low or high.
        tile = tl.permute(tl.join(low, high), [0, 1, 6, 3, 5, 2, 4])
    else:
        first, second = dequantize_bytes(grid, times, plus, OFFSET == "minimum")
        # Axes: row, unit, block, word, half of a pair, first or second.
        tile = tl.permute(tl.join(_halves(first), _halves(second)), [0, 1, 3, 5, 2, 4])
    return tl.reshape(tile, [ROWS, UNITS * 128])

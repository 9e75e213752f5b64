"""Device functions on blocks of 32 activations: quantisation to int8 and integer dot products.

A tile has the axes groups (or tokens), rows, tokens (or groups), words: see ``GROUPS_FIRST``. One lane holds all four
words of the last axis, so that no function here exchanges values between lanes.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Whether kernels run in Triton's interpreter, on the CPU, as tests without a GPU do.
INTERPRETED = triton.knobs.runtime.interpret

# The lanes of a warp load neighbouring blocks if the compiler's layouts fill that axis right after the words: it is the
# first axis up to Triton 3.7, the last since. Either order computes the same.
GROUPS_FIRST = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 8)

# The sum of this and a small number has the number's nearest integer, halves to even, in its low bits.
MAGIC = tl.constexpr(12582912.0)
MAGIC_BITS = tl.constexpr(0x4B400000)
# Below this, 127 / amax would overflow: such a block is zero.
TINY = tl.constexpr(2.0**-120)

if INTERPRETED:

    @triton.jit
    def dp4a(a, b, c):
        """c + the sum of the products of the four signed bytes of ``a`` and ``b``."""
        for shift in tl.static_range(0, 32, 8):
            c += ((a << (24 - shift)) >> 24) * ((b << (24 - shift)) >> 24)
        return c

    @triton.jit
    def low_bytes(a, b, c, d):
        """The lowest bytes of four words in one."""
        return (a & 0xFF) | ((b & 0xFF) << 8) | ((c & 0xFF) << 16) | (d << 24)

else:

    @triton.jit
    def dp4a(a, b, c):
        """c + the sum of the products of the four signed bytes of ``a`` and ``b``."""
        return tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], dtype=tl.int32, is_pure=True, pack=1
        )

    @triton.jit
    def low_bytes(a, b, c, d):
        """The lowest bytes of four words in one."""
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 low, high;
            prmt.b32 low, $1, $2, 0x0040;
            prmt.b32 high, $3, $4, 0x0040;
            prmt.b32 $0, low, high, 0x5410;
            }""",
            "=r,r,r,r,r",
            [a, b, c, d],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def split4(tile):
    """The four elements of the last axis, each a tile of the other axes."""
    even, odd = tl.split(tl.reshape(tile, [tile.shape[0], tile.shape[1], tile.shape[2], 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def to_float(value):
    """fp32 of a stored scale or offset."""
    if value.dtype == tl.uint8:
        # Cheaper than a conversion: the low bits of 2^23.
        return (value.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0
    else:
        return value.to(tl.float32)


@triton.jit
def low_half(pair, BF16: tl.constexpr):
    """The first of the two numbers of 16 bits in a word, in fp32."""
    if BF16:
        return (pair << 16).to(tl.float32, bitcast=True)
    else:
        return pair.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def high_half(pair, BF16: tl.constexpr):
    """The second of the two numbers of 16 bits in a word, in fp32."""
    if BF16:
        return (pair & -65536).to(tl.float32, bitcast=True)
    else:
        return (pair >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def greatest(a, b):
    """The greater; NaN if one is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def greatest_of_pairs(pairs, BF16: tl.constexpr):
    """The greatest magnitude among the eight numbers of four words."""
    a, b, c, d = split4(greatest(tl.abs(low_half(pairs, BF16)), tl.abs(high_half(pairs, BF16))))
    return greatest(greatest(a, b), greatest(c, d))


@triton.jit
def quantize_word(first, second, inverse, BF16: tl.constexpr):
    """Four numbers of 16 bits, in two words, as a word of four int8."""
    return low_bytes(
        (low_half(first, BF16) * inverse + MAGIC).to(tl.int32, bitcast=True),
        (high_half(first, BF16) * inverse + MAGIC).to(tl.int32, bitcast=True),
        (low_half(second, BF16) * inverse + MAGIC).to(tl.int32, bitcast=True),
        (high_half(second, BF16) * inverse + MAGIC).to(tl.int32, bitcast=True),
    )


@triton.jit
def quantize_words(pairs, inverse, BF16: tl.constexpr):
    """Eight numbers of 16 bits, in four words, as two words of int8."""
    a, b, c, d = split4(pairs)
    return quantize_word(a, b, inverse, BF16), quantize_word(c, d, inverse, BF16)


@triton.jit
def load_pairs(x, offset, mask):
    """A block of 32 numbers of 16 bits: four tiles of four words."""
    return (
        tl.load(x + offset, mask=mask, other=0),
        tl.load(x + offset + 4, mask=mask, other=0),
        tl.load(x + offset + 8, mask=mask, other=0),
        tl.load(x + offset + 12, mask=mask, other=0),
    )


@triton.jit
def quantize_pairs(t0, t1, t2, t3, BF16: tl.constexpr):
    """Quantizes blocks of 32 as ``quantize_activation_reference`` does.

    Returns:
        The eight words of the block's int8, its scale, and the scale times the sum of the int8.
    """
    amax = greatest(
        greatest(greatest_of_pairs(t0, BF16), greatest_of_pairs(t1, BF16)),
        greatest(greatest_of_pairs(t2, BF16), greatest_of_pairs(t3, BF16)),
    )
    small = amax < TINY
    inverse = tl.where(small, 0.0, 127.0 / amax)
    scale = tl.where(small, 0.0, amax * (1.0 / 127.0))
    q0, q1 = quantize_words(t0, inverse, BF16)
    q2, q3 = quantize_words(t1, inverse, BF16)
    q4, q5 = quantize_words(t2, inverse, BF16)
    q6, q7 = quantize_words(t3, inverse, BF16)
    ones = tl.full(q0.shape, 0x01010101, tl.int32)
    total = dp4a(q1, ones, dp4a(q0, ones, tl.zeros_like(q0)))
    total = dp4a(q3, ones, dp4a(q2, ones, total))
    total = dp4a(q5, ones, dp4a(q4, ones, total))
    total = dp4a(q7, ones, dp4a(q6, ones, total))
    return q0, q1, q2, q3, q4, q5, q6, q7, scale, scale * total.to(tl.float32)


@triton.jit
def load_quantized(x, x_scale, x_sum, token4, token3, block4, block3, num_tokens, K: tl.constexpr):
    """Blocks that another kernel quantized; returns what ``quantize_pairs`` does."""
    inside4 = (token4 < num_tokens) & (block4 < K // 32)
    inside3 = (token3 < num_tokens) & (block3 < K // 32)
    word = token4 * (K // 4) + (block4 * 8 + tl.arange(0, 4)[None, None, None, :])
    q0, q1, q2, q3 = split4(tl.load(x + word, mask=inside4, other=0))
    q4, q5, q6, q7 = split4(tl.load(x + word + 4, mask=inside4, other=0))
    # A lane loads one block, as it does of the weights.
    at = tl.max_contiguous(token3 * (K // 32) + block3, [1, 1, 1])
    scale = tl.load(x_scale + at, mask=inside3, other=0.0)
    total = tl.load(x_sum + at, mask=inside3, other=0.0)
    return q0, q1, q2, q3, q4, q5, q6, q7, scale, total


@triton.jit
def quantize_blocks(values):
    """Quantizes fp32 [blocks, 32] as ``quantize_activation_reference`` does.

    Returns:
        int32 [blocks, 32] from -127 to 127; its scale [blocks]; the scale times the sum of the integers [blocks].
    """
    # tl.max ignores NaN.
    amax = tl.reduce(tl.abs(values), 1, greatest)
    small = amax < TINY
    inverse = tl.where(small, 0.0, 127.0 / amax)
    step = tl.where(small, 0.0, amax * (1.0 / 127.0))
    q = (values * inverse[:, None] + MAGIC).to(tl.int32, bitcast=True) - MAGIC_BITS
    return q, step, step * tl.sum(q, 1).to(tl.float32)

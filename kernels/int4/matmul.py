"""Products with many rows of activations, on tensor cores: weights become fp16 in registers, never in memory.

The transposed product weight [N, K] @ x^T [K, M] is computed, so that the weights are the operand that a tensor core
reads from registers. README.md derives the order of K.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from etcuda.kernels.blocks import INTERPRETED, MAGIC, TINY, greatest

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
def _weights(
    words, s, z, ss, zs, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, CODES: tl.constexpr
):  # fmt: skip
    """Weights times WEIGHT_FACTOR in fp16 [BLOCK_N, 32 * blocks], K in the order of ``order_kernel``.

    ``words`` [BLOCK_N, BITS * blocks]; what scales them [BLOCK_N, blocks], twice as wide for groups of 16.
    """
    ROWS: tl.constexpr = words.shape[0]
    UNITS: tl.constexpr = words.shape[1] // (4 * BITS)
    SHAPE: tl.constexpr = [ROWS, UNITS, 4, BITS]
    s = s.to(tl.float32) * WEIGHT_FACTOR
    if CODES:
        s = s * ss.to(tl.float32)
    times = _twice(s.to(tl.float16))
    if OFFSET == "minimum":
        m = z.to(tl.float32) * WEIGHT_FACTOR
        if CODES:
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


@triton.jit
def _load_inside(base, offset, part, PARTS: tl.constexpr, WIDTH: tl.constexpr):
    if PARTS % WIDTH == 0:
        return tl.load(base + offset)
    else:
        return tl.load(base + offset, mask=(part < PARTS)[None, :], other=0)


@triton.jit
def _load_scales(
    s_at, z_at, ss_at, zs_at, row, step,
    K: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, CODES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """What scales the blocks of a step, as stored [rows, BLOCKS]; 0 beyond K. Absent components repeat the scale."""
    PER: tl.constexpr = 2 if GROUP < 32 else 1
    part = step * (BLOCKS * PER) + tl.arange(0, BLOCKS * PER)
    group = row[:, None] * (K // GROUP) + (part // (GROUP * PER // 32))[None, :]
    s = _load_inside(s_at, group, part, K // 32 * PER, BLOCKS * PER)
    z = s
    ss = s
    zs = s
    if OFFSET != "symmetric":
        z = _load_inside(z_at, group, part, K // 32 * PER, BLOCKS * PER)
    if CODES:
        coarse = row[:, None] * (K // 256) + (part // (8 * PER))[None, :]
        ss = _load_inside(ss_at, coarse, part, K // 32 * PER, BLOCKS * PER)
        if OFFSET == "minimum":
            zs = _load_inside(zs_at, coarse, part, K // 32 * PER, BLOCKS * PER)
    return s, z, ss, zs


@triton.jit
def _order(
    x, ordered, factor, num_tokens,
    K: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, ROUND: tl.constexpr, UNITS: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Rows of activations in fp16 and in the order of K that ``matmul_kernel`` reads.

    Row m of ``ordered`` [num_tokens, WIDTH] is x[m] / factor[m], a power of two; columns beyond K are zero. With ROUND
    the activations are first rounded to int8 per block of 32. Programs (m, i) share a row; each looks at all of it.
    """
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    CHUNK: tl.constexpr = UNITS * 128
    block = tl.arange(0, UNITS * 4)
    at = block[:, None] * 32 + tl.arange(0, 32)[None, :]
    most = tl.zeros([UNITS * 4], tl.float32)
    for start in range(0, WIDTH, CHUNK):
        values = tl.load(x + row * K + start + at, mask=(start + at < K) & (row < num_tokens), other=0.0).to(tl.float32)
        most = greatest(most, tl.max(tl.abs(values), 1))
    # Of the greatest magnitude the exponent alone: activations below 2^14 in fp16, exact down to 2^-24 of the greatest.
    exponent = (tl.max(most, 0).to(tl.int32, bitcast=True) >> 23) & 0xFF
    exponent = tl.minimum(tl.maximum(exponent, 27), 240)
    down = ((254 + 13 - exponent) << 23).to(tl.float32, bitcast=True)
    if (tl.program_id(1) == 0) & (row < num_tokens):
        tl.store(factor + row, ((exponent - 13) << 23).to(tl.float32, bitcast=True))
    for start in range(tl.program_id(1) * CHUNK, WIDTH, tl.num_programs(1) * CHUNK):
        values = tl.load(x + row * K + start + at, mask=(start + at < K) & (row < num_tokens), other=0.0).to(tl.float32)
        if ROUND:
            amax = tl.max(tl.abs(values), 1)
            small = amax < TINY
            inverse = tl.where(small, 0.0, 127.0 / amax)
            step = tl.where(small, 0.0, amax * (1.0 / 127.0))
            # The differences are NaN where the value is.
            values = (values * inverse[:, None] + MAGIC - MAGIC) * step[:, None]
        units = (values * down).to(tl.float16)
        if BITS == 4:
            # 128 unit + 32 block + 16 high + 4 word + 2 e + odd
            # goes to 128 unit + 64 high + 16 word + 8 odd + 2 block + e
            units = tl.permute(tl.reshape(units, [UNITS, 4, 2, 4, 2, 2]), [0, 2, 3, 5, 1, 4])
        else:
            # 128 unit + 32 block + 4 word + 2 second + e goes to 128 unit + 16 word + 8 second + 2 block + e
            units = tl.permute(tl.reshape(units, [UNITS, 4, 8, 2, 2]), [0, 2, 3, 1, 4])
        units = tl.reshape(units, [CHUNK])
        column = start + tl.arange(0, CHUNK)
        tl.store(ordered + row * WIDTH + column, units, mask=(column < WIDTH) & (row < num_tokens))


@triton.jit
def _matmul(
    x,  # [num_tokens rounded up to BLOCK_M, WIDTH] fp16, in the order of order_kernel; what rows beyond hold is ignored
    factor,  # [num_tokens] fp32
    qdata, scale, zero, scale_step, zero_step, bias,
    out,  # [num_tokens, num_rows]
    partial,  # [2 * programs, BLOCK_M, BLOCK_N] fp32
    num_rows, num_tokens,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr, EVEN_N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCKS: tl.constexpr,
    STAGES: tl.constexpr, AHEAD: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Programs take whole tiles in turn, and equal shares of the steps of the tiles that do not fill a last turn; the
    parts of a tile that two or more share are summed by ``reduce_kernel``. A step is BLOCKS blocks of 32 along K."""
    WIDTH: tl.constexpr = (K + 127) // 128 * 128
    STEPS: tl.constexpr = (K // 32 + BLOCKS - 1) // BLOCKS
    EVEN_K: tl.constexpr = K % (32 * BLOCKS) == 0
    qdata = qdata.to(tl.pointer_type(tl.int32), bitcast=True)
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    tiles_m = tl.cdiv(num_tokens, BLOCK_M)
    tiles = tl.cdiv(num_rows, BLOCK_N) * tiles_m
    turns = tiles // programs
    shared = (tiles - turns * programs).to(tl.int64) * STEPS
    begin = (shared * program // programs).to(tl.int32)
    end = (shared * (program + 1) // programs).to(tl.int32)
    unit = begin
    turn = 0
    local_n = tl.arange(0, BLOCK_N)
    word = tl.arange(0, BITS * BLOCKS)
    k = tl.arange(0, 32 * BLOCKS)
    x_offset = tl.arange(0, BLOCK_M)[None, :] * WIDTH + k[:, None]
    while (turn < turns) | (unit < end):
        if turn < turns:
            tile = turn * programs + program
            first = 0
            last = STEPS
        else:
            tile = turns * programs + unit // STEPS
            first = unit % STEPS
            last = tl.minimum(STEPS, first + (end - unit))
        first_n = tile // tiles_m * BLOCK_N
        first_m = tile % tiles_m * BLOCK_M
        row = local_n
        if not EVEN_N:
            # Rows beyond the last repeat it: what they give is not stored.
            row = tl.minimum(local_n, num_rows - 1 - first_n)
        word_offset = row[:, None] * (K * BITS // 32) + word[None, :]
        words_at = qdata + first_n.to(tl.int64) * (K * BITS // 32)
        s_at = scale + first_n.to(tl.int64) * (K // GROUP)
        z_at = zero + first_n.to(tl.int64) * (K // GROUP)
        ss_at = scale_step + first_n.to(tl.int64) * (K // 256)
        zs_at = zero_step + first_n.to(tl.int64) * (K // 256)
        x_at = x + first_m.to(tl.int64) * WIDTH
        accumulator = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        if AHEAD:
            # A thread loads too little of these tiles for an asynchronous copy: they are loaded one step ahead instead.
            s, z, ss, zs = _load_scales(
                s_at, z_at, ss_at, zs_at, row, first, K, GROUP, OFFSET, CODES, BLOCKS
            )  # fmt: skip
        for i in tl.range(first, last, num_stages=STAGES):
            n_s, n_z, n_ss, n_zs = _load_scales(
                s_at, z_at, ss_at, zs_at, row, tl.minimum(i + 1, last - 1) if AHEAD else i, K, GROUP, OFFSET, CODES,
                BLOCKS,
            )  # fmt: skip
            if not AHEAD:
                s, z, ss, zs = n_s, n_z, n_ss, n_zs
            start = i * BLOCKS
            if EVEN_K:
                words = tl.load(words_at + start * BITS + word_offset)
                xs = tl.load(x_at + start * 32 + x_offset)
            else:
                inside = (start * BITS + word < K * BITS // 32)[None, :]
                words = tl.load(words_at + start * BITS + word_offset, mask=inside, other=0)
                xs = tl.load(x_at + start * 32 + x_offset, mask=(start * 32 + k < WIDTH)[:, None], other=0.0)
            accumulator = tl.dot(_weights(words, s, z, ss, zs, BITS, GROUP, OFFSET, CODES), xs, accumulator)
            if AHEAD:
                s, z, ss, zs = n_s, n_z, n_ss, n_zs
        n = first_n + local_n
        m = first_m + tl.arange(0, BLOCK_M)
        if last - first == STEPS:
            up = tl.load(factor + m, mask=m < num_tokens, other=0.0) * (1.0 / WEIGHT_FACTOR)
            values = accumulator * up[None, :]
            if HAS_BIAS:
                values += tl.load(bias + n, mask=n < num_rows, other=0.0).to(tl.float32)[:, None]
            at = out + (m.to(tl.int64)[None, :] * num_rows + n[:, None])
            tl.store(at, values.to(out.dtype.element_ty), mask=(n < num_rows)[:, None] & (m < num_tokens)[None, :])
        else:
            slot = 2 * program + (unit > begin).to(tl.int32)
            part_at = partial + slot.to(tl.int64) * (BLOCK_N * BLOCK_M)
            tl.store(part_at + local_n[:, None] + tl.arange(0, BLOCK_M)[None, :] * BLOCK_N, accumulator)
        if turn >= turns:
            unit += last - first
        turn += 1


@triton.jit
def _reduce(
    factor, bias, out, partial, num_rows, num_tokens, programs,
    HAS_BIAS: tl.constexpr, STEPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, PART_M: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Sums the parts of tiles that programs of ``matmul_kernel`` shared, PART_M tokens of a tile per program."""
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    tiles_m = tl.cdiv(num_tokens, BLOCK_M)
    tiles = tl.cdiv(num_rows, BLOCK_N) * tiles_m
    turns = tiles // programs
    total = (tiles - turns * programs).to(tl.int64) * STEPS
    tile = turns * programs + tl.program_id(0)
    begin = tl.program_id(0).to(tl.int64) * STEPS
    # The programs whose shares hold the first and the last step of this tile.
    first = ((begin + 1) * programs - 1) // tl.maximum(total, 1)
    last = ((begin + STEPS) * programs - 1) // tl.maximum(total, 1)
    last = tl.where(begin < total, last, first)
    if first < last:
        n = tl.arange(0, BLOCK_N)
        m = tl.program_id(1) * PART_M + tl.arange(0, PART_M)
        values = tl.zeros([PART_M, BLOCK_N], tl.float32)
        for program in range(first, last + 1):
            share = total * program // programs
            # More programs than steps: some have none.
            some = share < total * (program + 1) // programs
            slot = 2 * program + (share < begin).to(tl.int32)
            at = partial + slot * (BLOCK_N * BLOCK_M) + (m[:, None] * BLOCK_N + n[None, :])
            values += tl.load(at, mask=some, other=0.0)
        n += tile // tiles_m * BLOCK_N
        m += tile % tiles_m * BLOCK_M
        up = tl.load(factor + m, mask=m < num_tokens, other=0.0) * (1.0 / WEIGHT_FACTOR)
        values *= up[:, None]
        if HAS_BIAS:
            values += tl.load(bias + n, mask=n < num_rows, other=0.0).to(tl.float32)[None, :]
        at = out + (m.to(tl.int64)[:, None] * num_rows + n[None, :])
        tl.store(at, values.to(out.dtype.element_ty), mask=(m < num_tokens)[:, None] & (n < num_rows)[None, :])


@triton.jit
def order_kernel(
    x, ordered, factor, num_tokens,
    K: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, ROUND: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Puts activations in order; grid: (tokens, programs that share a row)."""
    _order(
        x, ordered, factor, num_tokens, K, WIDTH, BITS, ROUND, UNITS, False,
    )  # fmt: skip


@triton.jit
def order_overlapped(
    x, ordered, factor, num_tokens,
    K: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, ROUND: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Like ``order_kernel``, and may be launched while the kernel in front of it runs."""
    _order(
        x, ordered, factor, num_tokens, K, WIDTH, BITS, ROUND, UNITS, True,
    )  # fmt: skip


@triton.jit
def matmul_kernel(
    x,  # [num_tokens rounded up to BLOCK_M, WIDTH] fp16, in the order of order_kernel; what rows beyond hold is ignored
    factor,  # [num_tokens] fp32
    qdata, scale, zero, scale_step, zero_step, bias,
    out,  # [num_tokens, num_rows]
    partial,  # [2 * programs, BLOCK_M, BLOCK_N] fp32
    num_rows, num_tokens,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr, EVEN_N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCKS: tl.constexpr,
    STAGES: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """The product; grid: programs."""
    _matmul(
        x, factor, qdata, scale, zero, scale_step, zero_step, bias, out, partial, num_rows, num_tokens, K, BITS,
        GROUP, OFFSET, CODES, HAS_BIAS, EVEN_N, BLOCK_N, BLOCK_M, BLOCKS, STAGES, AHEAD, False,
    )  # fmt: skip


@triton.jit
def matmul_overlapped(
    x,  # [num_tokens rounded up to BLOCK_M, WIDTH] fp16, in the order of order_kernel; what rows beyond hold is ignored
    factor,  # [num_tokens] fp32
    qdata, scale, zero, scale_step, zero_step, bias,
    out,  # [num_tokens, num_rows]
    partial,  # [2 * programs, BLOCK_M, BLOCK_N] fp32
    num_rows, num_tokens,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr, EVEN_N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCKS: tl.constexpr,
    STAGES: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Like ``matmul_kernel``, and may be launched while the kernel in front of it runs."""
    _matmul(
        x, factor, qdata, scale, zero, scale_step, zero_step, bias, out, partial, num_rows, num_tokens, K, BITS,
        GROUP, OFFSET, CODES, HAS_BIAS, EVEN_N, BLOCK_N, BLOCK_M, BLOCKS, STAGES, AHEAD, True,
    )  # fmt: skip


@triton.jit
def reduce_kernel(
    factor, bias, out, partial, num_rows, num_tokens, programs,
    HAS_BIAS: tl.constexpr, STEPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, PART_M: tl.constexpr,
):  # fmt: skip
    """Sums the parts of shared tiles; grid: (shared tiles, BLOCK_M / PART_M)."""
    _reduce(
        factor, bias, out, partial, num_rows, num_tokens, programs, HAS_BIAS, STEPS, BLOCK_N, BLOCK_M, PART_M,
        False,
    )  # fmt: skip


@triton.jit
def reduce_overlapped(
    factor, bias, out, partial, num_rows, num_tokens, programs,
    HAS_BIAS: tl.constexpr, STEPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, PART_M: tl.constexpr,
):  # fmt: skip
    """Like ``reduce_kernel``, and may be launched while the kernel in front of it runs."""
    _reduce(
        factor, bias, out, partial, num_rows, num_tokens, programs, HAS_BIAS, STEPS, BLOCK_N, BLOCK_M, PART_M,
        True,
    )  # fmt: skip

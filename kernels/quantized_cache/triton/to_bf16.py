"""Pairs of words of codes to pairs of bfloat16 numbers, in PTX: each function gives those of one code of a word."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def nibble0_to_bf16(words):
    """Codes 0 of four in a word: 2 code - 15 behind the exponent of 128, and a cubic of it."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 w, x, y, u, v;
        shl.b32 w, $1, 1;
        mov.b32 u, 0x001e001e;
        mov.b32 v, 0x43004300;
        lop3.b32 w, w, u, v, 0xea;
        mov.b32 u, 0x3f803f80;
        mov.b32 v, 0xc30fc30f;
        fma.rn.bf16x2 x, w, u, v;
        mov.b32 u, 0x80008000;
        fma.rn.bf16x2 y, x, x, u;
        mov.b32 u, 0x39833983;
        mov.b32 v, 0x3dfa3dfa;
        fma.rn.bf16x2 y, y, u, v;
        mov.b32 u, 0x80008000;
        fma.rn.bf16x2 $0, y, x, u;
        }""",
        "=r,r",
        [words],
        dtype=tl.bfloat16,
        is_pure=True,
        pack=2,
    )


@triton.jit
def nibble1_to_bf16(words):
    """Codes 1; see ``nibble0_to_bf16``."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 w, x, y, u, v;
        shr.u32 w, $1, 3;
        mov.b32 u, 0x001e001e;
        mov.b32 v, 0x43004300;
        lop3.b32 w, w, u, v, 0xea;
        mov.b32 u, 0x3f803f80;
        mov.b32 v, 0xc30fc30f;
        fma.rn.bf16x2 x, w, u, v;
        mov.b32 u, 0x80008000;
        fma.rn.bf16x2 y, x, x, u;
        mov.b32 u, 0x39833983;
        mov.b32 v, 0x3dfa3dfa;
        fma.rn.bf16x2 y, y, u, v;
        mov.b32 u, 0x80008000;
        fma.rn.bf16x2 $0, y, x, u;
        }""",
        "=r,r",
        [words],
        dtype=tl.bfloat16,
        is_pure=True,
        pack=2,
    )


@triton.jit
def nibble2_to_bf16(words):
    """Codes 2; see ``nibble0_to_bf16``."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 w, x, y, u, v;
        shr.u32 w, $1, 7;
        mov.b32 u, 0x001e001e;
        mov.b32 v, 0x43004300;
        lop3.b32 w, w, u, v, 0xea;
        mov.b32 u, 0x3f803f80;
        mov.b32 v, 0xc30fc30f;
        fma.rn.bf16x2 x, w, u, v;
        mov.b32 u, 0x80008000;
        fma.rn.bf16x2 y, x, x, u;
        mov.b32 u, 0x39833983;
        mov.b32 v, 0x3dfa3dfa;
        fma.rn.bf16x2 y, y, u, v;
        mov.b32 u, 0x80008000;
        fma.rn.bf16x2 $0, y, x, u;
        }""",
        "=r,r",
        [words],
        dtype=tl.bfloat16,
        is_pure=True,
        pack=2,
    )


@triton.jit
def nibble3_to_bf16(words):
    """Codes 3; see ``nibble0_to_bf16``."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 w, x, y, u, v;
        shr.u32 w, $1, 11;
        mov.b32 u, 0x001e001e;
        mov.b32 v, 0x43004300;
        lop3.b32 w, w, u, v, 0xea;
        mov.b32 u, 0x3f803f80;
        mov.b32 v, 0xc30fc30f;
        fma.rn.bf16x2 x, w, u, v;
        mov.b32 u, 0x80008000;
        fma.rn.bf16x2 y, x, x, u;
        mov.b32 u, 0x39833983;
        mov.b32 v, 0x3dfa3dfa;
        fma.rn.bf16x2 y, y, u, v;
        mov.b32 u, 0x80008000;
        fma.rn.bf16x2 $0, y, x, u;
        }""",
        "=r,r",
        [words],
        dtype=tl.bfloat16,
        is_pure=True,
        pack=2,
    )


@triton.jit
def int8_0_to_bf16(words):
    """The low 7 bits behind the exponent of 128, less 128 or 256."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 w, x, u, v;
        shr.u32 w, $1, 0;
        mov.b32 u, 0x00800080;
        mov.b32 v, 0x43004300;
        lop3.b32 x, w, u, v, 0xae;
        mov.b32 u, 0x007f007f;
        mov.b32 v, 0x43004300;
        lop3.b32 w, w, u, v, 0xea;
        mov.b32 u, 0xbf80bf80;
        fma.rn.bf16x2 $0, x, u, w;
        }""",
        "=r,r",
        [words],
        dtype=tl.bfloat16,
        is_pure=True,
        pack=2,
    )


@triton.jit
def int8_1_to_bf16(words):
    """Codes 1; see ``int8_0_to_bf16``."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 w, x, u, v;
        shr.u32 w, $1, 8;
        mov.b32 u, 0x00800080;
        mov.b32 v, 0x43004300;
        lop3.b32 x, w, u, v, 0xae;
        mov.b32 u, 0x007f007f;
        mov.b32 v, 0x43004300;
        lop3.b32 w, w, u, v, 0xea;
        mov.b32 u, 0xbf80bf80;
        fma.rn.bf16x2 $0, x, u, w;
        }""",
        "=r,r",
        [words],
        dtype=tl.bfloat16,
        is_pure=True,
        pack=2,
    )


@triton.jit
def fp8_0_to_bf16(words):
    """Exponent and mantissa moved to their places, times 2^120 for the other bias."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 w, x, u, v;
        shl.b32 x, $1, 8;
        and.b32 x, x, 0x80008000;
        shl.b32 w, $1, 4;
        and.b32 w, w, 0x07f007f0;
        or.b32 w, w, x;
        mov.b32 u, 0x7b807b80;
        mov.b32 v, 0x80008000;
        fma.rn.bf16x2 $0, w, u, v;
        }""",
        "=r,r",
        [words],
        dtype=tl.bfloat16,
        is_pure=True,
        pack=2,
    )


@triton.jit
def fp8_1_to_bf16(words):
    """Codes 1; see ``fp8_0_to_bf16``."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 w, x, u, v;
        mov.b32 x, $1;
        and.b32 x, x, 0x80008000;
        shr.u32 w, $1, 4;
        and.b32 w, w, 0x07f007f0;
        or.b32 w, w, x;
        mov.b32 u, 0x7b807b80;
        mov.b32 v, 0x80008000;
        fma.rn.bf16x2 $0, w, u, v;
        }""",
        "=r,r",
        [words],
        dtype=tl.bfloat16,
        is_pure=True,
        pack=2,
    )

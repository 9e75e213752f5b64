"""Pairs of words of codes to pairs of float16 numbers, in PTX: each function gives those of one code of a word."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def nibble0_to_fp16(words):
    """Codes 0; see ``nibble0_to_bf16`` of ``to_bf16.py``."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 w, x, y, u, v;
        shl.b32 w, $1, 1;
        mov.b32 u, 0x001e001e;
        mov.b32 v, 0x64006400;
        lop3.b32 w, w, u, v, 0xea;
        mov.b32 u, 0x3c003c00;
        mov.b32 v, 0xe40fe40f;
        fma.rn.f16x2 x, w, u, v;
        mov.b32 u, 0x80008000;
        fma.rn.f16x2 y, x, x, u;
        mov.b32 u, 0x0c180c18;
        mov.b32 v, 0x2fd02fd0;
        fma.rn.f16x2 y, y, u, v;
        mov.b32 u, 0x80008000;
        fma.rn.f16x2 $0, y, x, u;
        }""",
        "=r,r",
        [words],
        dtype=tl.float16,
        is_pure=True,
        pack=2,
    )


@triton.jit
def nibble1_to_fp16(words):
    """Codes 1; see ``nibble0_to_bf16`` of ``to_bf16.py``."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 w, x, y, u, v;
        shr.u32 w, $1, 3;
        mov.b32 u, 0x001e001e;
        mov.b32 v, 0x64006400;
        lop3.b32 w, w, u, v, 0xea;
        mov.b32 u, 0x3c003c00;
        mov.b32 v, 0xe40fe40f;
        fma.rn.f16x2 x, w, u, v;
        mov.b32 u, 0x80008000;
        fma.rn.f16x2 y, x, x, u;
        mov.b32 u, 0x0c180c18;
        mov.b32 v, 0x2fd02fd0;
        fma.rn.f16x2 y, y, u, v;
        mov.b32 u, 0x80008000;
        fma.rn.f16x2 $0, y, x, u;
        }""",
        "=r,r",
        [words],
        dtype=tl.float16,
        is_pure=True,
        pack=2,
    )


@triton.jit
def nibble2_to_fp16(words):
    """Codes 2; see ``nibble0_to_bf16`` of ``to_bf16.py``."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 w, x, y, u, v;
        shr.u32 w, $1, 7;
        mov.b32 u, 0x001e001e;
        mov.b32 v, 0x64006400;
        lop3.b32 w, w, u, v, 0xea;
        mov.b32 u, 0x3c003c00;
        mov.b32 v, 0xe40fe40f;
        fma.rn.f16x2 x, w, u, v;
        mov.b32 u, 0x80008000;
        fma.rn.f16x2 y, x, x, u;
        mov.b32 u, 0x0c180c18;
        mov.b32 v, 0x2fd02fd0;
        fma.rn.f16x2 y, y, u, v;
        mov.b32 u, 0x80008000;
        fma.rn.f16x2 $0, y, x, u;
        }""",
        "=r,r",
        [words],
        dtype=tl.float16,
        is_pure=True,
        pack=2,
    )


@triton.jit
def nibble3_to_fp16(words):
    """Codes 3; see ``nibble0_to_bf16`` of ``to_bf16.py``."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 w, x, y, u, v;
        shr.u32 w, $1, 11;
        mov.b32 u, 0x001e001e;
        mov.b32 v, 0x64006400;
        lop3.b32 w, w, u, v, 0xea;
        mov.b32 u, 0x3c003c00;
        mov.b32 v, 0xe40fe40f;
        fma.rn.f16x2 x, w, u, v;
        mov.b32 u, 0x80008000;
        fma.rn.f16x2 y, x, x, u;
        mov.b32 u, 0x0c180c18;
        mov.b32 v, 0x2fd02fd0;
        fma.rn.f16x2 y, y, u, v;
        mov.b32 u, 0x80008000;
        fma.rn.f16x2 $0, y, x, u;
        }""",
        "=r,r",
        [words],
        dtype=tl.float16,
        is_pure=True,
        pack=2,
    )


@triton.jit
def int8_0_to_fp16(words):
    """1024 plus the code, over 128, less 9: the number over 128."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 w, u, v;
        shr.u32 w, $1, 0;
        mov.b32 u, 0x00ff00ff;
        mov.b32 v, 0x64006400;
        lop3.b32 w, w, u, v, 0xea;
        mov.b32 u, 0x20002000;
        mov.b32 v, 0xc880c880;
        fma.rn.f16x2 $0, w, u, v;
        }""",
        "=r,r",
        [words],
        dtype=tl.float16,
        is_pure=True,
        pack=2,
    )


@triton.jit
def int8_1_to_fp16(words):
    """Codes 1; see ``int8_0_to_fp16``."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 w, u, v;
        shr.u32 w, $1, 8;
        mov.b32 u, 0x00ff00ff;
        mov.b32 v, 0x64006400;
        lop3.b32 w, w, u, v, 0xea;
        mov.b32 u, 0x20002000;
        mov.b32 v, 0xc880c880;
        fma.rn.f16x2 $0, w, u, v;
        }""",
        "=r,r",
        [words],
        dtype=tl.float16,
        is_pure=True,
        pack=2,
    )


@triton.jit
def fp8_0_to_fp16(words):
    """Exponent and mantissa moved to their places: the number over 256."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 w, x;
        shl.b32 x, $1, 8;
        and.b32 x, x, 0x80008000;
        shl.b32 w, $1, 7;
        and.b32 w, w, 0x3f803f80;
        or.b32 $0, w, x;
        }""",
        "=r,r",
        [words],
        dtype=tl.float16,
        is_pure=True,
        pack=2,
    )


@triton.jit
def fp8_1_to_fp16(words):
    """Codes 1; see ``fp8_0_to_fp16``."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 w, x;
        mov.b32 x, $1;
        and.b32 x, x, 0x80008000;
        shr.u32 w, $1, 1;
        and.b32 w, w, 0x3f803f80;
        or.b32 $0, w, x;
        }""",
        "=r,r",
        [words],
        dtype=tl.float16,
        is_pure=True,
        pack=2,
    )

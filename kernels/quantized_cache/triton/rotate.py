"""The rotation of ``tq4`` on the device: one row a CTA. See ``rotation.py``."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def hadamard_entries(i, j):
    """Entries of a Hadamard matrix, fp32, for rows and columns below 32."""
    x = i & j
    x ^= x >> 4
    x ^= x >> 2
    x ^= x >> 1
    return 1.0 - 2.0 * (x & 1).to(tl.float32)


@triton.jit
def head_signs(column):
    """Signs of a head's numbers, fp32."""
    x = (column + 1).to(tl.uint32) * 0x9E3779B1
    x = (x ^ (x >> 15)) * 0x2C1B3C6D
    return 1.0 - 2.0 * ((x >> 16) & 1).to(tl.float32)


@triton.jit
def hadamard(x, D: tl.constexpr, EXACT: tl.constexpr):
    """H x of one vector [D] fp32: D is a product of two factors of at most 32, and H the product of theirs.

    Without ``EXACT`` numbers are cut to the 11 bits of TF32, which is all that float16 and bfloat16 have.
    """
    B: tl.constexpr = 16 if D <= 256 else 32
    A: tl.constexpr = D // B
    rows = tl.arange(0, A)
    columns = tl.arange(0, B)
    inner = hadamard_entries(columns[:, None], columns[None, :])
    outer = hadamard_entries(rows[:, None], rows[None, :])
    y = tl.dot(tl.reshape(x, [A, B]), inner, input_precision="ieee" if EXACT else "tf32")
    y = tl.sum(y[:, None, :] * outer[:, :, None], 0)
    return tl.reshape(y, [D])


@triton.jit
def rotate_kernel(
    x, out, stride_xb, stride_xh, stride_xm, stride_ob, stride_oh, stride_om, heads, length,
    D: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Grid: (batch * heads * length,). Rotates rows of [batch, heads, length, D], or rotates them back."""
    row = tl.program_id(0)
    m = (row % length).to(tl.int64)
    h = (row // length % heads).to(tl.int64)
    b = (row // length // heads).to(tl.int64)
    column = tl.arange(0, D)
    value = tl.load(x + b * stride_xb + h * stride_xh + m * stride_xm + column).to(tl.float32)
    sign = head_signs(column)
    if not BACK:
        value = value * sign
    value = hadamard(value, D, tl.float32 == x.dtype.element_ty)
    if BACK:
        value = value * sign
    place = out + b * stride_ob + h * stride_oh + m * stride_om + column
    tl.store(place, (value * (D**-0.5)).to(out.dtype.element_ty))

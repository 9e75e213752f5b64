"""Convolutions as products of pixels and filters, without the matrix of pixels in memory (implicit GEMM)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def convolution_kernel(
    x,  # [N, height, width, C]
    weight,  # [OUT, KERNEL_H, KERNEL_W, C / GROUPS]
    bias,  # [OUT]
    residual,  # [N, out_height, out_width, OUT]
    out,  # likewise
    num_pixels, height, width, out_height, out_width,
    C: tl.constexpr, OUT: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr, PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr, GROUPS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    RELU: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """A CTA computes BLOCK_M pixels of BLOCK_N output channels of a group."""
    IN_GROUP: tl.constexpr = C // GROUPS
    OUT_GROUP: tl.constexpr = OUT // GROUPS
    DEPTH: tl.constexpr = KERNEL_H * KERNEL_W * IN_GROUP
    # Where a step stays within one tap, a thread loads neighbouring channels at once.
    WHOLE: tl.constexpr = IN_GROUP % BLOCK_K == 0
    group = tl.program_id(2)
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = pixel < num_pixels
    is_column = column < OUT_GROUP
    image = (pixel // (out_height * out_width)).to(tl.int64)
    first_y = (pixel // out_width % out_height) * STRIDE_H - PADDING_H
    first_x = (pixel % out_width) * STRIDE_W - PADDING_W
    images = x + image * height * width * C + group * IN_GROUP
    filters = weight + (group * OUT_GROUP + column).to(tl.int64) * DEPTH
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in tl.range(0, (DEPTH + BLOCK_K - 1) // BLOCK_K, num_stages=STAGES):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        if WHOLE:
            tap = step // (IN_GROUP // BLOCK_K)
            channel = step % (IN_GROUP // BLOCK_K) * BLOCK_K + tl.arange(0, BLOCK_K)
            y = (first_y + tap // KERNEL_W * DILATION_H)[:, None]
            across = (first_x + tap % KERNEL_W * DILATION_W)[:, None]
            inside = exists[:, None] & (y >= 0) & (y < height) & (across >= 0) & (across < width)
            values = tl.load(images[:, None] + ((y * width + across) * C + channel[None, :]), mask=inside, other=0.0)
            factors = tl.load(filters[None, :] + k[:, None], mask=is_column[None, :], other=0.0)
        else:
            tap = k // IN_GROUP
            channel = k % IN_GROUP
            y = first_y[:, None] + (tap // KERNEL_W * DILATION_H)[None, :]
            across = first_x[:, None] + (tap % KERNEL_W * DILATION_W)[None, :]
            inside = exists[:, None] & (y >= 0) & (y < height) & (across >= 0) & (across < width)
            inside &= (k < DEPTH)[None, :]
            values = tl.load(images[:, None] + ((y * width + across) * C + channel[None, :]), mask=inside, other=0.0)
            factors = tl.load(filters[None, :] + k[:, None], mask=is_column[None, :] & (k < DEPTH)[:, None], other=0.0)
        total = tl.dot(values, factors, total, input_precision=PRECISION)
    channels = group * OUT_GROUP + column
    at = pixel.to(tl.int64)[:, None] * OUT + channels[None, :]
    mask = exists[:, None] & is_column[None, :]
    if HAS_BIAS:
        total += tl.load(bias + channels, mask=is_column, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        total += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        # Not a number stays so.
        total = tl.where(total < 0, 0.0, total)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)

"""Dynamic quantisation of activations to int8 per block of 32."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from etcuda.kernels.common.blocks import quantize_blocks


@triton.jit
def _quantize(x, q, scale, total, num_blocks, BLOCKS: tl.constexpr, PDL: tl.constexpr):
    """int8 of ``x`` [num_blocks, 32] of any floating dtype, with scales and sums [num_blocks]."""
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block < num_blocks
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    offset = block.to(tl.int64)[:, None] * 32 + tl.arange(0, 32)[None, :]
    values = tl.load(x + offset, mask=inside[:, None], other=0.0).to(tl.float32)
    quantized, step, sums = quantize_blocks(values)
    tl.store(q + offset, quantized.to(tl.int8), mask=inside[:, None])
    tl.store(scale + block, step, mask=inside)
    tl.store(total + block, sums, mask=inside)


@triton.jit
def quantize_kernel(x, q, scale, total, num_blocks, BLOCKS: tl.constexpr):
    """int8 of ``x`` [num_blocks, 32] of any floating dtype, with scales and sums [num_blocks]."""
    _quantize(x, q, scale, total, num_blocks, BLOCKS, False)


@triton.jit
def quantize_pdl(x, q, scale, total, num_blocks, BLOCKS: tl.constexpr):
    """Like ``quantize_kernel``, and may be launched while the kernel in front of it runs."""
    _quantize(x, q, scale, total, num_blocks, BLOCKS, True)

"""Triton's stand-ins of the kernel in ``grouped.cu``: kernels/cuda/README.md says what for."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def hopper_grouped_kernel(x, order, tiles, qdata, scale, zero, out, x_rows, out_rows, MARK: tl.constexpr):
    """Stands for the kernel in grouped.cu, and stores to what it writes."""
    done = tl.inline_asm_elementwise(MARK, "=r,r", [x_rows], tl.int32, True, 1)
    tl.store(out, done.to(out.dtype.element_ty))


@triton.jit
def hopper_grouped_pdl(x, order, tiles, qdata, scale, zero, out, x_rows, out_rows, MARK: tl.constexpr):
    """Like ``hopper_grouped_kernel``; the host may launch it while the kernel in front of it runs."""
    done = tl.inline_asm_elementwise(MARK, "=r,r", [x_rows], tl.int32, True, 1)
    tl.store(out, done.to(out.dtype.element_ty))

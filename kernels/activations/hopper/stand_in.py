"""Triton's stand-ins of the kernels in ``reorder.cu`` and ``reorder_as_is.cu``: kernels/cuda/README.md says what
for."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def hopper_reorder_kernel(x, reordered, factor, semaphores, num_tokens_plus_2, reordered_rows, MARK: tl.constexpr):
    """Stands for the kernels in reorder.cu and reorder_as_is.cu, and stores to the arguments that they write."""
    done = tl.inline_asm_elementwise(MARK, "=r,r", [reordered_rows], tl.int32, True, 1)
    tl.store(reordered, done.to(reordered.dtype.element_ty))
    tl.store(factor, done.to(tl.float32))
    tl.store(semaphores, done)


@triton.jit
def hopper_reorder_pdl(x, reordered, factor, semaphores, num_tokens_plus_2, reordered_rows, MARK: tl.constexpr):
    """Like ``hopper_reorder_kernel``; the host may launch it while the kernel in front of it runs."""
    done = tl.inline_asm_elementwise(MARK, "=r,r", [reordered_rows], tl.int32, True, 1)
    tl.store(reordered, done.to(reordered.dtype.element_ty))
    tl.store(factor, done.to(tl.float32))
    tl.store(semaphores, done)


@triton.jit
def hopper_gate_reorder_kernel(
    gate, up, reordered, factor, semaphores, gate_stride, up_stride, num_tokens_plus_2, reordered_rows,
    MARK: tl.constexpr,
):  # fmt: skip
    """Stands for the kernels in reorder.cu and reorder_as_is.cu that compute a gated activation first, and stores to
    the arguments that they write."""
    done = tl.inline_asm_elementwise(MARK, "=r,r", [reordered_rows], tl.int32, True, 1)
    tl.store(reordered, done.to(reordered.dtype.element_ty))
    tl.store(factor, done.to(tl.float32))
    tl.store(semaphores, done)


@triton.jit
def hopper_gate_reorder_pdl(
    gate, up, reordered, factor, semaphores, gate_stride, up_stride, num_tokens_plus_2, reordered_rows,
    MARK: tl.constexpr,
):  # fmt: skip
    """Like ``hopper_gate_reorder_kernel``; the host may launch it while the kernel in front of it runs."""
    done = tl.inline_asm_elementwise(MARK, "=r,r", [reordered_rows], tl.int32, True, 1)
    tl.store(reordered, done.to(reordered.dtype.element_ty))
    tl.store(factor, done.to(tl.float32))
    tl.store(semaphores, done)

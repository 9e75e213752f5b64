"""What stands for the kernels in ``reorder.cu`` and ``reorder_as_is.cu`` where Triton launches them: ../../cuda/README.md."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def hopper_reorder_kernel(x, reordered, factor, semaphores, tokens_and_two, rows, MARK: tl.constexpr):
    """Stands for the kernels in reorder.cu and reorder_as_is.cu; says which arguments are written."""
    done = tl.inline_asm_elementwise(MARK, "=r,r", [rows], tl.int32, True, 1)
    tl.store(reordered, done.to(reordered.dtype.element_ty))
    tl.store(factor, done.to(tl.float32))
    tl.store(semaphores, done)


@triton.jit
def hopper_reorder_pdl(x, reordered, factor, semaphores, tokens_and_two, rows, MARK: tl.constexpr):
    """Like ``hopper_reorder_kernel``, and may be launched while the kernel in front of it runs."""
    done = tl.inline_asm_elementwise(MARK, "=r,r", [rows], tl.int32, True, 1)
    tl.store(reordered, done.to(reordered.dtype.element_ty))
    tl.store(factor, done.to(tl.float32))
    tl.store(semaphores, done)


@triton.jit
def hopper_gate_reorder_kernel(
    gate, up, reordered, factor, semaphores, gate_stride, up_stride, tokens_and_two, rows, MARK: tl.constexpr
):  # fmt: skip
    """Stands for the kernels in reorder.cu and reorder_as_is.cu that compute a gated activation first."""
    done = tl.inline_asm_elementwise(MARK, "=r,r", [rows], tl.int32, True, 1)
    tl.store(reordered, done.to(reordered.dtype.element_ty))
    tl.store(factor, done.to(tl.float32))
    tl.store(semaphores, done)


@triton.jit
def hopper_gate_reorder_pdl(
    gate, up, reordered, factor, semaphores, gate_stride, up_stride, tokens_and_two, rows, MARK: tl.constexpr
):  # fmt: skip
    """Like ``hopper_gate_reorder_kernel``, and may be launched while the kernel in front of it runs."""
    done = tl.inline_asm_elementwise(MARK, "=r,r", [rows], tl.int32, True, 1)
    tl.store(reordered, done.to(reordered.dtype.element_ty))
    tl.store(factor, done.to(tl.float32))
    tl.store(semaphores, done)

"""What stands for the kernels in ``reorder.cu`` and ``reorder_as_is.cu`` where Triton launches them: ../../cuda/README.md."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def warpgroup_order_kernel(x, ordered, factor, tickets, tokens_and_two, rows, MARK: tl.constexpr):
    """Stands for the kernels in order.cu and order_as_is.cu; says which arguments are written."""
    done = tl.inline_asm_elementwise(MARK, "=r,r", [rows], tl.int32, True, 1)
    tl.store(ordered, done.to(ordered.dtype.element_ty))
    tl.store(factor, done.to(tl.float32))
    tl.store(tickets, done)


@triton.jit
def warpgroup_order_overlapped(x, ordered, factor, tickets, tokens_and_two, rows, MARK: tl.constexpr):
    """Like ``warpgroup_order_kernel``, and may be launched while the kernel in front of it runs."""
    done = tl.inline_asm_elementwise(MARK, "=r,r", [rows], tl.int32, True, 1)
    tl.store(ordered, done.to(ordered.dtype.element_ty))
    tl.store(factor, done.to(tl.float32))
    tl.store(tickets, done)


@triton.jit
def warpgroup_gate_kernel(
    gate, up, ordered, factor, tickets, gate_stride, up_stride, tokens_and_two, rows, MARK: tl.constexpr
):  # fmt: skip
    """Stands for the kernels in order.cu and order_as_is.cu that compute a gated activation first."""
    done = tl.inline_asm_elementwise(MARK, "=r,r", [rows], tl.int32, True, 1)
    tl.store(ordered, done.to(ordered.dtype.element_ty))
    tl.store(factor, done.to(tl.float32))
    tl.store(tickets, done)


@triton.jit
def warpgroup_gate_overlapped(
    gate, up, ordered, factor, tickets, gate_stride, up_stride, tokens_and_two, rows, MARK: tl.constexpr
):  # fmt: skip
    """Like ``warpgroup_gate_kernel``, and may be launched while the kernel in front of it runs."""
    done = tl.inline_asm_elementwise(MARK, "=r,r", [rows], tl.int32, True, 1)
    tl.store(ordered, done.to(ordered.dtype.element_ty))
    tl.store(factor, done.to(tl.float32))
    tl.store(tickets, done)

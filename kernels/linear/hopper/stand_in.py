"""What stands for the kernels in ``reorder.cu``, ``reorder_as_is.cu`` and ``gemm.cu`` where Triton launches them:
../native/README.md."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def hopper_gemm_kernel(
    x, factor, qdata, scale, zero, bias, out, partial, semaphores, rows_and_two, tokens_and_two, rows_of_x,
    MARK: tl.constexpr,
):  # fmt: skip
    """Stands for the kernel in gemm.cu; says which arguments are written. Semaphores are zero when it begins and when
    it ends. Numbers of rows and tokens come as two more: an argument that is 1 would be left out."""
    done = tl.inline_asm_elementwise(MARK, "=r,r", [rows_of_x], tl.int32, True, 1)
    tl.store(out, done.to(out.dtype.element_ty))
    tl.store(partial, done.to(tl.float32))


@triton.jit
def hopper_gemm_pdl(
    x, factor, qdata, scale, zero, bias, out, partial, semaphores, rows_and_two, tokens_and_two, rows_of_x,
    MARK: tl.constexpr,
):  # fmt: skip
    """Like ``hopper_gemm_kernel``, and may be launched while the kernel in front of it runs."""
    done = tl.inline_asm_elementwise(MARK, "=r,r", [rows_of_x], tl.int32, True, 1)
    tl.store(out, done.to(out.dtype.element_ty))
    tl.store(partial, done.to(tl.float32))

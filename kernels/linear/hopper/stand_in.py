"""Triton's stand-ins of the kernel in ``gemm.cu``: kernels/cuda/README.md says what for."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def hopper_gemm_kernel(
    x, factor, qdata, scale, zero, bias, out, workspace, semaphores, out_features_plus_2, num_tokens_plus_2, x_rows,
    MARK: tl.constexpr,
):  # fmt: skip
    """Stands for the kernel in gemm.cu, and stores to the arguments that it writes. Semaphores are not among them: the
    kernel leaves them zero, as it finds them. Two is added to sizes because Triton would leave out one that is 1."""
    done = tl.inline_asm_elementwise(MARK, "=r,r", [x_rows], tl.int32, True, 1)
    tl.store(out, done.to(out.dtype.element_ty))
    tl.store(workspace, done.to(tl.float32))


@triton.jit
def hopper_gemm_pdl(
    x, factor, qdata, scale, zero, bias, out, workspace, semaphores, out_features_plus_2, num_tokens_plus_2, x_rows,
    MARK: tl.constexpr,
):  # fmt: skip
    """Like ``hopper_gemm_kernel``; the host may launch it while the kernel in front of it runs."""
    done = tl.inline_asm_elementwise(MARK, "=r,r", [x_rows], tl.int32, True, 1)
    tl.store(out, done.to(out.dtype.element_ty))
    tl.store(workspace, done.to(tl.float32))

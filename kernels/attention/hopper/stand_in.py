"""Triton's stand-in of the kernel in ``decode.cu``: kernels/cuda/README.md says what for."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attention_cluster_kernel(q, k, v, kv_len, positions, sinks, out, l_kv_plus_2, MARK: tl.constexpr):
    """Stands for the kernel in decode.cu, and stores to the argument that it writes."""
    done = tl.inline_asm_elementwise(MARK, "=r,r", [l_kv_plus_2], tl.int32, True, 1)
    tl.store(out, done.to(tl.float32).to(out.dtype.element_ty))


@triton.jit
def attention_cluster_pdl(q, k, v, kv_len, positions, sinks, out, l_kv_plus_2, MARK: tl.constexpr):
    """Like ``attention_cluster_kernel``; the host may launch it while the kernel in front of it runs."""
    done = tl.inline_asm_elementwise(MARK, "=r,r", [l_kv_plus_2], tl.int32, True, 1)
    tl.store(out, done.to(tl.float32).to(out.dtype.element_ty))

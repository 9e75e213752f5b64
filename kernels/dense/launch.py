"""Launches of the kernels. Arguments were checked before."""

from __future__ import annotations

import triton
from torch import Tensor

from etcuda.kernels.common.conditional import new_result
from etcuda.kernels.common.memory import aligned
from etcuda.kernels.common.pdl import choose_kernel
from etcuda.kernels.dense.choose.configs import DenseLaunch
from etcuda.kernels.dense.triton import matvec as mv


def dense_matvec(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, how: DenseLaunch) -> Tensor:
    """x [M, K], dense, M at most ``how.tokens``, times a weight [N, K], or [2 N, K] with an activation; [M, N]."""
    num_tokens, k = x.shape
    dense = aligned(weight.contiguous(), 16)
    n = dense.shape[0] if activation == "none" else dense.shape[0] // 2
    out = new_result(x, (num_tokens, n), x.dtype)
    kernels = (
        (mv.dense_resident_kernel, mv.dense_resident_pdl)
        if how.ctas
        else (mv.dense_stepped_kernel, mv.dense_stepped_pdl)
    )
    # The kernel in front of it would write a copy of the weight, which is read before that one's end.
    kernel, early = choose_kernel(x, *kernels, how.pdl if dense is weight else 0)
    tiles = triton.cdiv(n, how.block_n)
    # The weight stands in for a bias that is absent.
    kernel[(min(how.ctas, tiles) if how.ctas else tiles,)](
        x, dense, dense if bias is None else bias, out, n, num_tokens, K=k, HAS_BIAS=bias is not None,
        ACTIVATION=activation, TOKENS=how.tokens, BLOCK_N=how.block_n, BLOCK_K=how.block_k, num_warps=how.num_warps,
        **early,
    )  # fmt: skip
    return out

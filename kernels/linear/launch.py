"""Launches of the kernels: what the operators of all formats share. Arguments were checked before."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from etcuda.kernels.activations.reference import Quantized
from etcuda.kernels.activations.reorder_launch import dtype_name, reorder, segments_of
from etcuda.kernels.common.blocks import GROUPS_FIRST
from etcuda.kernels.common.conditional import new_result
from etcuda.kernels.common.memory import aligned
from etcuda.kernels.common.pdl import choose_kernel
from etcuda.kernels.cuda import native_kernels
from etcuda.kernels.formats.base import DTYPES
from etcuda.kernels.formats.stored import StoredWeight
from etcuda.kernels.linear.choose.configs import MatmulLaunch, MatvecLaunch
from etcuda.kernels.linear.hopper.gemm import GemmConfig
from etcuda.kernels.linear.hopper.stand_in import hopper_gemm_kernel, hopper_gemm_pdl
from etcuda.kernels.linear.triton import matvec as mv
from etcuda.kernels.linear.triton.fixup import reduce_kernel, reduce_pdl
from etcuda.kernels.linear.triton.matmul import matmul_kernel, matmul_pdl

Reordered = tuple[Tensor, Tensor, Tensor]


def matvec(
    weight: StoredWeight, x: Tensor | Quantized, how: MatvecLaunch, bias: Tensor | None, dtype: torch.dtype,
    activation: str = "none",
) -> Tensor:  # fmt: skip
    """x [M, K], M at most ``how.tokens``, times a weight; [M, N]. ``x`` is what ``quantize`` made of it if the launch
    says so. With an activation [M, N / 2]: the activation of the first half's product times the other half's."""
    values, scale, total = x if isinstance(x, tuple) else (x, x, x)
    num_tokens, k = values.shape
    gated = activation != "none"
    n = weight.n // 2 if gated else weight.n
    # A tile has as many rows of the weight with an activation as without: half of them from either half.
    block_n = max(how.block_n // 2, 1) if gated else how.block_n
    out = new_result(values, (num_tokens, n), dtype)
    tensors = [*_tensors(weight), weight.qdata if bias is None else bias]
    constants = {
        **_format_constants(weight, k), "HAS_BIAS": bias is not None, "ACTIVATION": activation, "TOKENS": how.tokens,
        "BLOCK_N": block_n, "BLOCKS": how.blocks, "STAGES": how.num_stages, "GROUPS_FIRST": GROUPS_FIRST,
    }  # fmt: skip
    if how.ctas:
        kernel, early = choose_kernel(values, mv.resident_kernel, mv.resident_pdl, how.pdl)
        kernel[(min(how.ctas, triton.cdiv(n, block_n)),)](
            values, *tensors, out, n, num_tokens, **constants, num_warps=how.num_warps, **early,
        )  # fmt: skip
    else:
        kernel, early = choose_kernel(values, mv.stepped_kernel, mv.stepped_pdl, how.pdl)
        kernel[(triton.cdiv(n, block_n),)](
            values, scale, total, *tensors, out, n, num_tokens, **constants, QUANTIZED=how.quantized,
            num_warps=how.num_warps, **early,
        )  # fmt: skip
    return out


def matmul(
    weight: StoredWeight, x: Tensor, how: MatmulLaunch, bias: Tensor | None, activation_dtype: str
) -> Tensor:  # fmt: skip
    """x [M, K] times a weight; [M, N]."""
    tiled = int(how.warpgroups > 0)
    reordered = reorder(weight.format.bits, x, activation_dtype, how.block_m, tiled, how.pdl)
    return matmul_reordered(weight, reordered, how, bias, x.dtype, activation_dtype)


def matmul_reordered(
    weight: StoredWeight,
    reordered: Reordered,
    how: MatmulLaunch,
    bias: Tensor | None,
    dtype: torch.dtype,
    activation_dtype: str,
) -> Tensor:
    """What ``order`` made of x [M, K] times a weight; [M, N]."""
    x, factor, _ = reordered
    out = new_result(x, (factor.shape[-1], weight.n), dtype)
    partials = x.new_empty(2 * how.ctas * how.block_n * how.block_m if how.ctas else 1, dtype=torch.float32)
    if how.warpgroups:
        _launch_hopper(weight, reordered, how, bias, activation_dtype, out, partials)
    else:
        _launch_triton(weight, x, factor, how, bias, out, partials)
    return out


def _launch_hopper(
    weight: StoredWeight, reordered: Reordered, how: MatmulLaunch, bias: Tensor | None, activation_dtype: str,
    out: Tensor, partials: Tensor,
) -> None:  # fmt: skip
    x, factor, semaphores = reordered
    if bias is not None and bias.dtype not in DTYPES:
        bias = bias.to(torch.float32)
    _, scale, zero, *_ = _tensors(weight)
    # What it copies at a time.
    needs = ((weight.qdata, 16), (scale, 16), (zero, 8 if weight.format.offset == "zero_point" else 16))
    tensors = [aligned(tensor, to) for tensor, to in needs]
    copied = any(made is not given for made, (given, _) in zip(tensors, needs, strict=True))
    # The kernel in front of it would write a weight, which is read before that one's end.
    kernel, early = choose_kernel(x, hopper_gemm_kernel, hopper_gemm_pdl, 0 if copied else how.pdl)
    made = GemmConfig(
        k=weight.k, mma_dtype=dtype_name(x.dtype), activation_dtype=activation_dtype, k_segments=segments_of(factor),
        offset=weight.format.offset, block_m=how.block_m, warpgroups=how.warpgroups, num_stages=how.num_stages,
        out_dtype=dtype_name(out.dtype), bias_dtype=None if bias is None else dtype_name(bias.dtype),
    ).native()  # fmt: skip
    with native_kernels():
        kernel[(how.ctas,)](
            x, factor, *tensors, weight.qdata if bias is None else bias, out, partials, semaphores, weight.n + 2,
            out.shape[0] + 2, x.shape[0], MARK=made.mark, **early,
        )  # fmt: skip


def _launch_triton(
    weight: StoredWeight, x: Tensor, factor: Tensor, how: MatmulLaunch, bias: Tensor | None, out: Tensor,
    partials: Tensor,
) -> None:  # fmt: skip
    num_tokens, n, k = out.shape[0], weight.n, weight.k
    added = weight.qdata if bias is None else bias
    tiles = triton.cdiv(n, how.block_n) * torch.sym_max(triton.cdiv(num_tokens, how.block_m), 1)
    # Copies of less than four bytes a thread are not asynchronous.
    wide = (
        weight.format.scale_storage != "codes"
        and weight.format.group_size == 32
        and how.block_n * how.blocks >= 128 * how.num_warps
    )
    kernel, early = choose_kernel(x, matmul_kernel, matmul_pdl, how.pdl, how.max_registers)
    kernel[(how.ctas or tiles,)](
        x, factor, *_tensors(weight), added, out, partials, n, num_tokens, **_format_constants(weight, k),
        HAS_BIAS=bias is not None, EVEN_N=n % how.block_n == 0, BLOCK_N=how.block_n, BLOCK_M=how.block_m,
        BLOCKS=how.blocks, STAGES=how.num_stages, AHEAD=not wide, MAX_REGISTERS=how.max_registers,
        num_warps=how.num_warps, **early,
    )  # fmt: skip
    if not how.ctas:
        return
    steps = triton.cdiv(k // 32, how.blocks)
    chunk_m = min(how.block_m, 16)
    kernel, early = choose_kernel(x, reduce_kernel, reduce_pdl, how.pdl)
    kernel[(torch.sym_min(tiles, how.ctas), how.block_m // chunk_m)](
        factor, added, out, partials, n, num_tokens, how.ctas, HAS_BIAS=bias is not None, STEPS=steps,
        BLOCK_N=how.block_n, BLOCK_M=how.block_m, CHUNK_M=chunk_m, WIDE=how.ctas * how.ctas * steps >= 1 << 31,
        num_warps=4, **early,
    )  # fmt: skip


def _format_constants(weight: StoredWeight, k: int) -> dict[str, object]:
    stored = weight.format
    group = min(stored.group_size, k)
    scale_codes = stored.scale_storage == "codes"
    return {"K": k, "BITS": stored.bits, "GROUP": group, "OFFSET": stored.offset, "SCALE_CODES": scale_codes}


def _tensors(weight: StoredWeight) -> list[Tensor]:
    # The scale stands in for what is absent.
    return [weight.scale if tensor is None else tensor for tensor in weight.tensors]

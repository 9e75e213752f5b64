"""Launches of the kernels: what the operators of int4 and int8 weights share. Arguments were checked before."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from etcuda.kernels.activations.reorder_launch import dtype_name, reorder, segments_of
from etcuda.kernels.common.blocks import GROUPS_FIRST
from etcuda.kernels.common.memory import aligned
from etcuda.kernels.common.pdl import choose_kernel
from etcuda.kernels.cuda import native_kernels
from etcuda.kernels.formats.base import DTYPES, GroupFormat
from etcuda.kernels.linear.check import Stored
from etcuda.kernels.linear.hopper.gemm import native
from etcuda.kernels.linear.hopper.stand_in import hopper_gemm_kernel, hopper_gemm_pdl
from etcuda.kernels.linear.triton import matvec as mv
from etcuda.kernels.linear.triton.fixup import reduce_kernel, reduce_pdl
from etcuda.kernels.linear.triton.matmul import matmul_kernel, matmul_pdl


def matvec(
    bits: int,
    form: GroupFormat,
    x: Tensor | tuple[Tensor, Tensor, Tensor],
    stored: Stored,
    bias: Tensor | None,
    dtype: torch.dtype,
    tokens: int,
    ctas: int,
    block_n: int,
    blocks: int,
    num_warps: int,
    num_stages: int,
    pdl: int,
) -> Tensor:
    """x [M, K], M at most ``tokens``, or what ``quantize`` made of it, times a weight; [M, N].

    ``programs`` is the number of programs of the resident kernel, or 0 for the stepped one.
    """
    qdata = stored[0]
    rounded = isinstance(x, tuple)
    rows, scale, total = x if isinstance(x, tuple) else (x, x, x)
    num_rows, num_tokens, k = qdata.shape[0], rows.shape[0], rows.shape[1]
    out = rows.new_empty((num_tokens, num_rows), dtype=dtype)
    parts = [qdata, *_present(stored), qdata if bias is None else bias]
    format_of = {
        "K": k,
        "BITS": bits,
        "GROUP": _group(form, k),
        "OFFSET": form.offset,
        "CODES": form.scale_storage == "codes",
        "HAS_BIAS": bias is not None,
    }
    shape = {"TOKENS": tokens, "BLOCK_N": block_n, "BLOCKS": blocks, "STAGES": num_stages}
    if ctas:
        kernel, early = choose_kernel(rows, mv.resident_kernel, mv.resident_pdl, pdl)
        kernel[(min(ctas, triton.cdiv(num_rows, block_n)),)](
            rows, *parts, out, num_rows, num_tokens, **format_of, **shape, GROUPS_FIRST=GROUPS_FIRST,
            num_warps=num_warps, **early,
        )  # fmt: skip
    else:
        kernel, early = choose_kernel(rows, mv.stepped_kernel, mv.stepped_pdl, pdl)
        kernel[(triton.cdiv(num_rows, block_n),)](
            rows, scale, total, *parts, out, num_rows, num_tokens, **format_of, QUANTIZED=rounded, **shape,
            GROUPS_FIRST=GROUPS_FIRST, num_warps=num_warps, **early,
        )  # fmt: skip
    return out


def matmul(
    bits: int,
    form: GroupFormat,
    x: Tensor,
    stored: Stored,
    bias: Tensor | None,
    activation_dtype: str,
    block_n: int,
    block_m: int,
    blocks: int,
    num_warps: int,
    num_stages: int,
    ctas: int,
    max_registers: int,
    warpgroups: int,
    pdl: int,
) -> Tensor:
    """x [M, K] times a weight; [M, N]. ``programs`` share the tiles, or 0 for one each."""
    reordered, factor, semaphores = reorder(bits, x, activation_dtype, block_m, int(warpgroups > 0), pdl)
    return matmul_reordered(
        bits, form, reordered, factor, semaphores, stored, bias, x.dtype, activation_dtype, block_n, block_m, blocks, num_warps,
        num_stages, ctas, max_registers, warpgroups, pdl,
    )  # fmt: skip


def matmul_reordered(
    bits: int,
    form: GroupFormat,
    reordered: Tensor,
    factor: Tensor,
    semaphores: Tensor,
    stored: Stored,
    bias: Tensor | None,
    dtype: torch.dtype,
    activation_dtype: str,
    block_n: int,
    block_m: int,
    blocks: int,
    num_warps: int,
    num_stages: int,
    ctas: int,
    max_registers: int,
    warpgroups: int,
    pdl: int,
) -> Tensor:
    """What ``order`` made of x [M, K] times a weight; [M, N]."""
    qdata = stored[0]
    num_rows, num_tokens, k = qdata.shape[0], factor.shape[-1], qdata.shape[1] * 8 // bits
    out = reordered.new_empty((num_tokens, num_rows), dtype=dtype)
    tiles = triton.cdiv(num_rows, block_n) * torch.sym_max(triton.cdiv(num_tokens, block_m), 1)
    partial = reordered.new_empty(2 * ctas * block_n * block_m if ctas else 1, dtype=torch.float32)
    added = qdata if bias is None else bias
    parts = _present(stored)
    if warpgroups:
        if bias is not None and bias.dtype not in DTYPES:
            added = bias = bias.to(torch.float32)
        # What it copies at a time.
        needs = ((qdata, 16), (parts[0], 16), (parts[1], 8 if form.offset == "zero_point" else 16))
        weights = [aligned(part, to) for part, to in needs]
        if any(made is not given for made, (given, _) in zip(weights, needs, strict=True)):
            pdl = 0  # The kernel in front writes a weight, which is read before that one's end.
        kernel, early = choose_kernel(reordered, hopper_gemm_kernel, hopper_gemm_pdl, pdl)
        bias_type = None if bias is None else dtype_name(bias.dtype)
        made = native(
            k, dtype_name(reordered.dtype), activation_dtype, segments_of(factor), form.offset, block_m, warpgroups, num_stages,
            dtype_name(dtype), bias_type,
        )  # fmt: skip
        with native_kernels():
            kernel[(ctas,)](
                reordered, factor, *weights, added, out, partial, semaphores, num_rows + 2,
                num_tokens + 2, reordered.shape[0], MARK=made.mark, **early,
            )  # fmt: skip
    else:
        # Copies of less than four bytes a thread are not asynchronous.
        wide = form.scale_storage != "codes" and form.group_size == 32 and block_n * blocks >= 128 * num_warps
        kernel, early = choose_kernel(reordered, matmul_kernel, matmul_pdl, pdl, max_registers)
        kernel[(ctas or tiles,)](
            reordered, factor, qdata, *parts, added, out, partial, num_rows, num_tokens,
            K=k, BITS=bits, GROUP=_group(form, k), OFFSET=form.offset, CODES=form.scale_storage == "codes",
            HAS_BIAS=bias is not None, EVEN_N=num_rows % block_n == 0, BLOCK_N=block_n, BLOCK_M=block_m,
            BLOCKS=blocks, STAGES=num_stages, AHEAD=not wide, MAX_REGISTERS=max_registers, num_warps=num_warps,
            **early,
        )  # fmt: skip
    if ctas and not warpgroups:
        steps = triton.cdiv(k // 32, blocks)
        part = min(block_m, 16)
        kernel, early = choose_kernel(reordered, reduce_kernel, reduce_pdl, pdl)
        kernel[(torch.sym_min(tiles, ctas), block_m // part)](
            factor, added, out, partial, num_rows, num_tokens, ctas, HAS_BIAS=bias is not None, STEPS=steps,
            BLOCK_N=block_n, BLOCK_M=block_m, PART_M=part, WIDE=ctas * ctas * steps >= 1 << 31, num_warps=4,
            **early,
        )  # fmt: skip
    return out


def _group(form: GroupFormat, k: int) -> int:
    return min(form.group_size, k)


def _present(stored: Stored) -> list[Tensor]:
    # The scale stands in for what is absent.
    return [stored[1] if part is None else part for part in stored[1:]]

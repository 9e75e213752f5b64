"""Launches of the kernels: what the operators of int4 and int8 weights share. Arguments were checked before."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from etcuda.kernels.activations.reorder_launch import dtype_name, order, segments_of
from etcuda.kernels.common.blocks import GROUPS_FIRST
from etcuda.kernels.common.memory import aligned
from etcuda.kernels.common.pdl import choose_kernel
from etcuda.kernels.cuda import native_kernels
from etcuda.kernels.formats.base import DTYPES, GroupFormat
from etcuda.kernels.linear.check import Stored
from etcuda.kernels.linear.hopper.gemm import native
from etcuda.kernels.linear.hopper.stand_in import warpgroup_kernel, warpgroup_overlapped
from etcuda.kernels.linear.triton import matvec as mv
from etcuda.kernels.linear.triton.fixup import reduce_kernel, reduce_overlapped
from etcuda.kernels.linear.triton.matmul import matmul_kernel, matmul_overlapped


def matvec(
    bits: int,
    form: GroupFormat,
    x: Tensor | tuple[Tensor, Tensor, Tensor],
    stored: Stored,
    bias: Tensor | None,
    dtype: torch.dtype,
    tokens: int,
    programs: int,
    block_n: int,
    blocks: int,
    num_warps: int,
    num_stages: int,
    overlap: int,
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
    if programs:
        kernel, early = choose_kernel(rows, mv.resident_kernel, mv.resident_overlapped, overlap)
        kernel[(min(programs, triton.cdiv(num_rows, block_n)),)](
            rows, *parts, out, num_rows, num_tokens, **format_of, **shape, GROUPS_FIRST=GROUPS_FIRST,
            num_warps=num_warps, **early,
        )  # fmt: skip
    else:
        kernel, early = choose_kernel(rows, mv.stepped_kernel, mv.stepped_overlapped, overlap)
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
    activation: str,
    block_n: int,
    block_m: int,
    blocks: int,
    num_warps: int,
    num_stages: int,
    programs: int,
    max_registers: int,
    warpgroups: int,
    overlap: int,
) -> Tensor:
    """x [M, K] times a weight; [M, N]. ``programs`` share the tiles, or 0 for one each."""
    ordered, factor, tickets = order(bits, x, activation, block_m, int(warpgroups > 0), overlap)
    return matmul_ordered(
        bits, form, ordered, factor, tickets, stored, bias, x.dtype, activation, block_n, block_m, blocks, num_warps,
        num_stages, programs, max_registers, warpgroups, overlap,
    )  # fmt: skip


def matmul_ordered(
    bits: int,
    form: GroupFormat,
    ordered: Tensor,
    factor: Tensor,
    tickets: Tensor,
    stored: Stored,
    bias: Tensor | None,
    dtype: torch.dtype,
    activation: str,
    block_n: int,
    block_m: int,
    blocks: int,
    num_warps: int,
    num_stages: int,
    programs: int,
    max_registers: int,
    warpgroups: int,
    overlap: int,
) -> Tensor:
    """What ``order`` made of x [M, K] times a weight; [M, N]."""
    qdata = stored[0]
    num_rows, num_tokens, k = qdata.shape[0], factor.shape[-1], qdata.shape[1] * 8 // bits
    out = ordered.new_empty((num_tokens, num_rows), dtype=dtype)
    tiles = triton.cdiv(num_rows, block_n) * torch.sym_max(triton.cdiv(num_tokens, block_m), 1)
    partial = ordered.new_empty(2 * programs * block_n * block_m if programs else 1, dtype=torch.float32)
    added = qdata if bias is None else bias
    parts = _present(stored)
    if warpgroups:
        if bias is not None and bias.dtype not in DTYPES:
            added = bias = bias.to(torch.float32)
        # What it copies at a time.
        needs = ((qdata, 16), (parts[0], 16), (parts[1], 8 if form.offset == "zero_point" else 16))
        weights = [aligned(part, to) for part, to in needs]
        if any(made is not given for made, (given, _) in zip(weights, needs, strict=True)):
            overlap = 0  # The kernel in front writes a weight, which is read before that one's end.
        kernel, early = choose_kernel(ordered, warpgroup_kernel, warpgroup_overlapped, overlap)
        bias_type = None if bias is None else dtype_name(bias.dtype)
        made = native(
            k, dtype_name(ordered.dtype), activation, segments_of(factor), form.offset, block_m, warpgroups, num_stages,
            dtype_name(dtype), bias_type,
        )  # fmt: skip
        with native_kernels():
            kernel[(programs,)](
                ordered, factor, *weights, added, out, partial, tickets, num_rows + 2,
                num_tokens + 2, ordered.shape[0], MARK=made.mark, **early,
            )  # fmt: skip
    else:
        # Copies of less than four bytes a thread are not asynchronous.
        wide = form.scale_storage != "codes" and form.group_size == 32 and block_n * blocks >= 128 * num_warps
        kernel, early = choose_kernel(ordered, matmul_kernel, matmul_overlapped, overlap, max_registers)
        kernel[(programs or tiles,)](
            ordered, factor, qdata, *parts, added, out, partial, num_rows, num_tokens,
            K=k, BITS=bits, GROUP=_group(form, k), OFFSET=form.offset, CODES=form.scale_storage == "codes",
            HAS_BIAS=bias is not None, EVEN_N=num_rows % block_n == 0, BLOCK_N=block_n, BLOCK_M=block_m,
            BLOCKS=blocks, STAGES=num_stages, AHEAD=not wide, MAX_REGISTERS=max_registers, num_warps=num_warps,
            **early,
        )  # fmt: skip
    if programs and not warpgroups:
        steps = triton.cdiv(k // 32, blocks)
        part = min(block_m, 16)
        kernel, early = choose_kernel(ordered, reduce_kernel, reduce_overlapped, overlap)
        kernel[(torch.sym_min(tiles, programs), block_m // part)](
            factor, added, out, partial, num_rows, num_tokens, programs, HAS_BIAS=bias is not None, STEPS=steps,
            BLOCK_N=block_n, BLOCK_M=block_m, PART_M=part, WIDE=programs * programs * steps >= 1 << 31, num_warps=4,
            **early,
        )  # fmt: skip
    return out


def _group(form: GroupFormat, k: int) -> int:
    return min(form.group_size, k)


def _present(stored: Stored) -> list[Tensor]:
    # The scale stands in for what is absent.
    return [stored[1] if part is None else part for part in stored[1:]]

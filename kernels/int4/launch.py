"""Launches of the kernels: what the operators of int4 and int8 weights share. Arguments were checked before."""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.errors import KernelArgumentError
from etcuda.kernels.blocks import GROUPS_FIRST, quantize_kernel, quantize_overlapped
from etcuda.kernels.groups import GroupFormat
from etcuda.kernels.int4 import matvec as mv
from etcuda.kernels.int4.check import DTYPES, Stored
from etcuda.kernels.int4.matmul import matmul_kernel, matmul_overlapped
from etcuda.kernels.int4.order import order_kernel, order_overlapped
from etcuda.kernels.int4.stand_in import (
    warpgroup_gate_kernel,
    warpgroup_gate_overlapped,
    warpgroup_kernel,
    warpgroup_order_kernel,
    warpgroup_order_overlapped,
    warpgroup_overlapped,
)
from etcuda.kernels.int4.sum_parts import reduce_kernel, reduce_overlapped
from etcuda.kernels.int4.warpgroup import (
    TICKETS,
    multiplies_in,
    native,
    native_order,
    native_order_as_is,
    programs_as_is,
)
from etcuda.kernels.native import Native, native_kernels
from etcuda.kernels.overlap import choose_kernel
from etcuda.kernels.quantized_reference import stretches

_ORDER_UNITS = 16  # Chunks of 128 activations that a program of order_kernel puts in order at a time.
Ordered = tuple[Tensor, Tensor, Tensor]
_MOST_SWEEP = 1 << 15  # Activations of a row of which it looks for the greatest at a time.


def quantize(x: Tensor, overlap: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rounds x [M, K] to int8 per block of 32: q [M, K], scale and sum float32 [M, K / 32]."""
    rows, k = x.shape
    q = x.new_empty((rows, k), dtype=torch.int8)
    scale, total = (x.new_empty((rows, k // 32), dtype=torch.float32) for _ in range(2))
    kernel, early = choose_kernel(x, quantize_kernel, quantize_overlapped, overlap)
    blocks = rows * k // 32
    # Few blocks are spread over many programs: what counts is latency.
    many = statically_known_true(rows > 64)
    block, warps = (32, 4) if many else (8, 1)
    grid = torch.sym_max(triton.cdiv(blocks, block), 1)
    kernel[(grid,)](x, q, scale, total, blocks, BLOCKS=block, num_warps=warps, **early)
    return q, scale, total


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


def order(bits: int, x: Tensor, activation: str, block_m: int, tiled: int, overlap: int) -> Ordered:
    """x [M, K] as the tensor-core product of weights of ``bits`` bits reads it: float16 [M rounded up to ``block_m``, K
    rounded up to 128] and, float32 [M], the power of two that each row was divided by. Rows beyond M are not written.
    ``tiled`` is 1 for the kernel in warpgroup.cu, whose tickets are zero; K is a multiple of 256 then, the type is
    ``multiplies_in``, and powers of two are [S, M] where ``stretches`` S are several.
    """
    num_tokens, k = x.shape
    ordered, factor, tickets = new_ordered(x, num_tokens, k, activation, block_m, tiled)
    if tiled:
        made, programs = _native_order(x, k, ordered, factor, activation)
        kernel, early = choose_kernel(x, warpgroup_order_kernel, warpgroup_order_overlapped, overlap)
        with native_kernels():
            kernel[(torch.sym_max(num_tokens, 1), programs)](
                x, ordered, factor, tickets, num_tokens + 2, ordered.shape[0], MARK=made.mark, **early
            )
        return ordered, factor, tickets
    width = ordered.shape[1]
    units = min(_ORDER_UNITS, triton.next_power_of_2(width // 128))
    # Programs that share a row: all, for few rows; more of them only read the row again.
    shared = 1 if statically_known_true(num_tokens > 256) else triton.cdiv(width, units * 128)
    sweep = min(triton.next_power_of_2(width), _MOST_SWEEP)
    kernel, early = choose_kernel(x, order_kernel, order_overlapped, overlap)
    kernel[(torch.sym_max(num_tokens, 1), shared)](
        x, ordered, factor, num_tokens, K=k, WIDTH=width, BITS=bits, ROUND=activation == "int8", UNITS=units,
        SWEEP=sweep, num_warps=min(16, max(4, sweep // 2048)), **early,
    )  # fmt: skip
    return ordered, factor, tickets


def order_gated(
    gate: Tensor, up: Tensor | None, gate_activation: str, activation: str, block_m: int, overlap: int
) -> Ordered:
    """What ``order`` makes of ``gate_activation``(gate) * up, [M, K] each, or of both side by side, tiled for int4."""
    k = gate.shape[1] // (2 if up is None else 1)
    gates = _rows_of_fours(gate)
    ups = gates if up is None else _rows_of_fours(up)
    num_tokens = gates.shape[0]
    ordered, factor, tickets = new_ordered(gates, num_tokens, k, activation, block_m, 1)
    made, programs = _native_order(
        gates, k, ordered, factor, activation, gate_activation, k if up is None else 0
    )  # fmt: skip
    kernel, early = choose_kernel(gates, warpgroup_gate_kernel, warpgroup_gate_overlapped, overlap)
    with native_kernels():
        kernel[(torch.sym_max(num_tokens, 1), programs)](
            gates, ups, ordered, factor, tickets, gates.stride(0), ups.stride(0), num_tokens + 2, ordered.shape[0],
            MARK=made.mark, **early,
        )  # fmt: skip
    return ordered, factor, tickets


def _native_order(
    x: Tensor, k: int, ordered: Tensor, factor: Tensor, activation: str, gate: str = "", up_offset: int = 0
) -> tuple[Native, int]:
    """The kernel that puts rows in a tiled order, and how many of its programs share one."""
    if ordered.dtype == torch.bfloat16:
        return native_order_as_is(k, gate, up_offset), programs_as_is(k)
    programs = _stretches_of(factor)
    return native_order(k, _name(x.dtype), activation, programs, gate, up_offset), programs


def _rows_of_fours(x: Tensor) -> Tensor:
    """x [M, K] of which the kernels can read four columns at a time; rows may be any such distance apart. A distance of
    1, which one row may have, would be left out of the arguments."""
    fits = statically_known_true(x.stride(1) == 1) and statically_known_true(x.stride(0) % 4 == 0)
    return aligned(x if fits else x.clone(memory_format=torch.contiguous_format), 16)


def new_ordered(x: Tensor, num_tokens: int, k: int, activation: str, block_m: int, tiled: int) -> Ordered:
    """What ``order`` returns, empty."""
    rows = torch.sym_max(triton.cdiv(num_tokens, block_m), 1) * block_m
    kind = multiplies_in(x.dtype, activation, block_m) if tiled else torch.float16
    ordered = x.new_empty((rows, triton.cdiv(k, 128) * 128), dtype=kind)
    tickets = x.new_empty((TICKETS if tiled else 1,), dtype=torch.int32)
    divided = tiled and kind == torch.float16
    count = stretches(k, activation, block_m) if divided else 1
    shape = (num_tokens,) if count == 1 else (count, num_tokens)
    return ordered, x.new_empty(shape, dtype=torch.float32), tickets


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
        bias_type = None if bias is None else _name(bias.dtype)
        made = native(
            k, _name(ordered.dtype), activation, _stretches_of(factor), form.offset, block_m, warpgroups, num_stages,
            _name(dtype), bias_type,
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


def _stretches_of(factor: Tensor) -> int:
    return factor.shape[0] if factor.dim() == 2 else 1


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def rows_of(x: Tensor) -> Tensor:
    """x as [M, K], dense, at an address of which 16 is a divisor: the kernels read 16 bytes at a time."""
    return aligned(x.reshape(-1, x.shape[-1]).contiguous(), 16)


def aligned(x: Tensor, to: int) -> Tensor:
    """x, dense, at an address of which ``to`` is a divisor: a copy where it is not. Constants of programs are at
    one."""
    if type(x) is Tensor and x.device.type != "meta":
        return x if x.data_ptr() % to == 0 else x.clone()
    offset = x.storage_offset() * x.element_size()
    return x if statically_known_true(offset % to == 0) else x.clone()


def require_device(op: str, x: Tensor) -> None:
    """Checks that kernels can read ``x``.

    Raises:
        KernelArgumentError: a real tensor that is on no GPU.
    """
    compiled = isinstance(mv.resident_kernel, triton.runtime.JITFunction)
    if type(x) is Tensor and x.device.type != "cuda" and compiled:
        raise KernelArgumentError(
            f"{op}: x: expected a tensor on a GPU, got one on {x.device}. Move it, or use the linear operator, which "
            "computes the reference there."
        )


def _group(form: GroupFormat, k: int) -> int:
    return min(form.group_size, k)


def _present(stored: Stored) -> list[Tensor]:
    # The scale stands in for what is absent.
    return [stored[1] if part is None else part for part in stored[1:]]

"""Launches of the kernels that reorder activations. Arguments were checked before."""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.kernels.activations.hopper.reorder import (
    TICKETS,
    multiplies_in,
    native_order,
    native_order_as_is,
    programs_as_is,
)
from etcuda.kernels.activations.hopper.stand_in import (
    warpgroup_gate_kernel,
    warpgroup_gate_overlapped,
    warpgroup_order_kernel,
    warpgroup_order_overlapped,
)
from etcuda.kernels.activations.reference import stretches
from etcuda.kernels.activations.reorder import order_kernel, order_overlapped
from etcuda.kernels.common.memory import aligned
from etcuda.kernels.common.pdl import choose_kernel
from etcuda.kernels.cuda import Native, native_kernels

_ORDER_UNITS = 16  # Chunks of 128 activations that a program of order_kernel puts in order at a time.
Ordered = tuple[Tensor, Tensor, Tensor]
_MOST_SWEEP = 1 << 15  # Activations of a row of which it looks for the greatest at a time.


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
    programs = segments_of(factor)
    return native_order(k, dtype_name(x.dtype), activation, programs, gate, up_offset), programs


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


def segments_of(factor: Tensor) -> int:
    return factor.shape[0] if factor.dim() == 2 else 1


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

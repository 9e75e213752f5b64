"""Launches of the kernels that reorder activations. Arguments were checked before."""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.kernels.activations.hopper.reorder import (
    SEMAPHORES,
    ctas_as_is,
    multiplies_in,
    native_reorder,
    native_reorder_as_is,
)
from etcuda.kernels.activations.hopper.stand_in import (
    hopper_gate_reorder_kernel,
    hopper_gate_reorder_pdl,
    hopper_reorder_kernel,
    hopper_reorder_pdl,
)
from etcuda.kernels.activations.reference import num_k_segments
from etcuda.kernels.activations.reorder import reorder_kernel, reorder_pdl
from etcuda.kernels.common.memory import aligned
from etcuda.kernels.common.pdl import choose_kernel
from etcuda.kernels.cuda import Native, native_kernels

_REORDER_UNITS = 16  # Chunks of 128 activations that a program of reorder_kernel puts in order at a time.
Reordered = tuple[Tensor, Tensor, Tensor]
_MOST_SWEEP = 1 << 15  # Activations of a row of which it looks for the greatest at a time.


def order(bits: int, x: Tensor, activation_dtype: str, block_m: int, tiled: int, pdl: int) -> Reordered:
    """x [M, K] as the tensor-core product of weights of ``bits`` bits reads it: float16 [M rounded up to ``block_m``, K
    rounded up to 128] and, float32 [M], the power of two that each row was divided by. Rows beyond M are not written.
    ``tiled`` is 1 for the kernel in gemm.cu, whose semaphores are zero; K is a multiple of 256 then, the type is
    ``multiplies_in``, and powers of two are [S, M] where ``k_segments`` S are several.
    """
    num_tokens, k = x.shape
    reordered, factor, semaphores = new_reordered(x, num_tokens, k, activation_dtype, block_m, tiled)
    if tiled:
        made, ctas = _native_reorder(x, k, reordered, factor, activation_dtype)
        kernel, early = choose_kernel(x, hopper_reorder_kernel, hopper_reorder_pdl, pdl)
        with native_kernels():
            kernel[(torch.sym_max(num_tokens, 1), ctas)](
                x, reordered, factor, semaphores, num_tokens + 2, reordered.shape[0], MARK=made.mark, **early
            )
        return reordered, factor, semaphores
    width = reordered.shape[1]
    units = min(_REORDER_UNITS, triton.next_power_of_2(width // 128))
    # Programs that share a row: all, for few rows; more of them only read the row again.
    shared = 1 if statically_known_true(num_tokens > 256) else triton.cdiv(width, units * 128)
    sweep = min(triton.next_power_of_2(width), _MOST_SWEEP)
    kernel, early = choose_kernel(x, reorder_kernel, reorder_pdl, pdl)
    kernel[(torch.sym_max(num_tokens, 1), shared)](
        x, reordered, factor, num_tokens, K=k, WIDTH=width, BITS=bits, ROUND=activation_dtype == "int8", UNITS=units,
        SWEEP=sweep, num_warps=min(16, max(4, sweep // 2048)), **early,
    )  # fmt: skip
    return reordered, factor, semaphores


def reorder_gated(
    gate: Tensor, up: Tensor | None, gate_activation: str, activation_dtype: str, block_m: int, pdl: int
) -> Reordered:
    """What ``order`` makes of ``gate_activation``(gate) * up, [M, K] each, or of both side by side, tiled for int4."""
    k = gate.shape[1] // (2 if up is None else 1)
    gates = _rows_of_fours(gate)
    ups = gates if up is None else _rows_of_fours(up)
    num_tokens = gates.shape[0]
    reordered, factor, semaphores = new_reordered(gates, num_tokens, k, activation_dtype, block_m, 1)
    made, ctas = _native_reorder(
        gates, k, reordered, factor, activation_dtype, gate_activation, k if up is None else 0
    )  # fmt: skip
    kernel, early = choose_kernel(gates, hopper_gate_reorder_kernel, hopper_gate_reorder_pdl, pdl)
    with native_kernels():
        kernel[(torch.sym_max(num_tokens, 1), ctas)](
            gates, ups, reordered, factor, semaphores, gates.stride(0), ups.stride(0), num_tokens + 2, reordered.shape[0],
            MARK=made.mark, **early,
        )  # fmt: skip
    return reordered, factor, semaphores


def _native_reorder(
    x: Tensor, k: int, reordered: Tensor, factor: Tensor, activation_dtype: str, gate: str = "", up_offset: int = 0
) -> tuple[Native, int]:
    """The kernel that puts rows in a tiled order, and how many of its programs share one."""
    if reordered.dtype == torch.bfloat16:
        return native_reorder_as_is(k, gate, up_offset), ctas_as_is(k)
    ctas = segments_of(factor)
    return native_reorder(k, dtype_name(x.dtype), activation_dtype, ctas, gate, up_offset), ctas


def _rows_of_fours(x: Tensor) -> Tensor:
    """x [M, K] of which the kernels can read four columns at a time; rows may be any such distance apart. A distance of
    1, which one row may have, would be left out of the arguments."""
    fits = statically_known_true(x.stride(1) == 1) and statically_known_true(x.stride(0) % 4 == 0)
    return aligned(x if fits else x.clone(memory_format=torch.contiguous_format), 16)


def new_reordered(x: Tensor, num_tokens: int, k: int, activation_dtype: str, block_m: int, tiled: int) -> Reordered:
    """What ``order`` returns, empty."""
    rows = torch.sym_max(triton.cdiv(num_tokens, block_m), 1) * block_m
    kind = multiplies_in(x.dtype, activation_dtype, block_m) if tiled else torch.float16
    reordered = x.new_empty((rows, triton.cdiv(k, 128) * 128), dtype=kind)
    semaphores = x.new_empty((SEMAPHORES if tiled else 1,), dtype=torch.int32)
    divided = tiled and kind == torch.float16
    count = num_k_segments(k, activation_dtype, block_m) if divided else 1
    shape = (num_tokens,) if count == 1 else (count, num_tokens)
    return reordered, x.new_empty(shape, dtype=torch.float32), semaphores


def segments_of(factor: Tensor) -> int:
    return factor.shape[0] if factor.dim() == 2 else 1


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

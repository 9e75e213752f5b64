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
from etcuda.kernels.activations.triton.reorder import reorder_kernel, reorder_pdl
from etcuda.kernels.common.memory import aligned
from etcuda.kernels.common.pdl import choose_kernel
from etcuda.kernels.cuda import Native, native_kernels

_MOST_UNITS = 16  # Units of 128 activations that a CTA of reorder_kernel reorders at a time.
_MOST_SWEEP = 1 << 15  # Activations of a row among which it looks for the greatest at a time.

Reordered = tuple[Tensor, Tensor, Tensor]


def reorder(bits: int, x: Tensor, activation_dtype: str, block_m: int, tiled: int, pdl: int) -> Reordered:
    """x [M, K] as the tensor-core product of weights of ``bits`` bits loads it.

    Args:
        bits: 4 or 8.
        x: dense.
        activation_dtype: "int8" or "exact".
        block_m: rows of the products' tiles.
        tiled: 1 for the product in gemm.cu, for which K is a multiple of 256; 0 for Triton's.
        pdl: 1 to launch the kernel while the one in front of it runs.

    Returns:
        The activations [M rounded up to ``block_m``, K rounded up to 128], float16 or, if ``tiled``, ``multiplies_in``;
        no thread stores rows beyond M. The power of two that each row was divided by, float32 [M], or of each of S k
        segments of a row, [S, M]. Semaphores, zeros if ``tiled``.
    """
    num_tokens, k = x.shape
    reordered, factor, semaphores = new_reordered(x, num_tokens, k, activation_dtype, block_m, tiled)
    if tiled:
        native, ctas = _native_reorder(x, k, reordered, factor, activation_dtype)
        kernel, options = choose_kernel(x, hopper_reorder_kernel, hopper_reorder_pdl, pdl)
        with native_kernels():
            kernel[(torch.sym_max(num_tokens, 1), ctas)](
                x, reordered, factor, semaphores, num_tokens + 2, reordered.shape[0], MARK=native.mark, **options
            )
        return reordered, factor, semaphores
    width = reordered.shape[1]
    units = min(_MOST_UNITS, triton.next_power_of_2(width // 128))
    # CTAs that share a row: all of it where rows are few; where they are many, more CTAs only load the row again.
    shared = 1 if statically_known_true(num_tokens > 256) else triton.cdiv(width, units * 128)
    sweep = min(triton.next_power_of_2(width), _MOST_SWEEP)
    kernel, options = choose_kernel(x, reorder_kernel, reorder_pdl, pdl)
    kernel[(torch.sym_max(num_tokens, 1), shared)](
        x, reordered, factor, num_tokens, K=k, WIDTH=width, BITS=bits, QUANTIZE=activation_dtype == "int8",
        UNITS=units, SWEEP=sweep, num_warps=min(16, max(4, sweep // 2048)), **options,
    )  # fmt: skip
    return reordered, factor, semaphores


def gate_reorder(
    gate: Tensor, up: Tensor | None, gate_activation: str, activation_dtype: str, block_m: int, pdl: int
) -> Reordered:
    """What ``reorder`` makes of gate_activation(gate) * up, [M, K] each or both side by side, tiled for int4."""
    k = gate.shape[1] // (2 if up is None else 1)
    gates = _rows_of_fours(gate)
    ups = gates if up is None else _rows_of_fours(up)
    num_tokens = gates.shape[0]
    reordered, factor, semaphores = new_reordered(gates, num_tokens, k, activation_dtype, block_m, 1)
    up_offset = k if up is None else 0
    native, ctas = _native_reorder(gates, k, reordered, factor, activation_dtype, gate_activation, up_offset)
    kernel, options = choose_kernel(gates, hopper_gate_reorder_kernel, hopper_gate_reorder_pdl, pdl)
    with native_kernels():
        kernel[(torch.sym_max(num_tokens, 1), ctas)](
            gates, ups, reordered, factor, semaphores, gates.stride(0), ups.stride(0), num_tokens + 2,
            reordered.shape[0], MARK=native.mark, **options,
        )  # fmt: skip
    return reordered, factor, semaphores


def new_reordered(x: Tensor, num_tokens: int, k: int, activation_dtype: str, block_m: int, tiled: int) -> Reordered:
    """Tensors for what ``reorder`` returns."""
    rows = torch.sym_max(triton.cdiv(num_tokens, block_m), 1) * block_m
    dtype = multiplies_in(x.dtype, activation_dtype, block_m) if tiled else torch.float16
    reordered = x.new_empty((rows, triton.cdiv(k, 128) * 128), dtype=dtype)
    semaphores = x.new_empty((SEMAPHORES if tiled else 1,), dtype=torch.int32)
    divided = tiled and dtype == torch.float16
    k_segments = num_k_segments(k, activation_dtype, block_m) if divided else 1
    shape = (num_tokens,) if k_segments == 1 else (k_segments, num_tokens)
    return reordered, x.new_empty(shape, dtype=torch.float32), semaphores


def segments_of(factor: Tensor) -> int:
    """K segments of a row that have a power of two each."""
    return factor.shape[0] if factor.dim() == 2 else 1


def dtype_name(dtype: torch.dtype) -> str:
    """float16 for ``torch.float16``."""
    return str(dtype).removeprefix("torch.")


def _native_reorder(
    x: Tensor, k: int, reordered: Tensor, factor: Tensor, activation_dtype: str, gate: str = "", up_offset: int = 0
) -> tuple[Native, int]:
    """The kernel in CUDA C++ that reorders rows, and how many of its CTAs share one."""
    if reordered.dtype == torch.bfloat16:
        return native_reorder_as_is(k, gate, up_offset), ctas_as_is(k)
    ctas = segments_of(factor)
    return native_reorder(k, dtype_name(x.dtype), activation_dtype, ctas, gate, up_offset), ctas


def _rows_of_fours(x: Tensor) -> Tensor:
    """x [M, K] of which a thread can load four columns at a time; rows may be any multiple of four apart.

    A stride of 1, which one row may have, Triton would leave out of the arguments.
    """
    fits = statically_known_true(x.stride(1) == 1) and statically_known_true(x.stride(0) % 4 == 0)
    return aligned(x if fits else x.clone(memory_format=torch.contiguous_format), 16)

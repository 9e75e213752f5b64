"""Reordering of activations on Hopper in CUDA C++: which dtype it gives, and how its kernels are compiled."""

from __future__ import annotations

import torch

from etcuda.kernels.activations.reference import SUMS_IN_FLOAT16_FROM
from etcuda.kernels.cuda import DTYPE_CODES, Native

ARCH = "sm_90"
SEMAPHORES = 1024  # That come with reordered activations: one for each shared tile, of which there are fewer than CTAs.
# Activation functions of a gate as columns.cuh counts them; "" where there is no gate.
GATE_CODES = {"": 0, "silu": 1, "gelu_tanh": 2, "gelu_erf": 3}
_STEP = 256  # Columns.
_THREADS = 128  # With 32 registers each they fit beside the largest product.
# Of a thread; an item is 16 activations. Only few of them come one to a thread. Gated ones take longer: with more of
# them, more loads are in flight.
_ITEMS = 2
_GATED_ITEMS = 3
_FEW_ITEMS = 384  # Of a k segment.
_MAX_THREADS = 1024


def multiplies_in(dtype: torch.dtype, activation_dtype: str, block_m: int) -> torch.dtype:
    """The dtype in which the product multiplies activations of ``dtype`` that are reordered for tiles of ``block_m``.

    With ``activation_dtype`` "int8" activations are not quantized: sums are in float16 instead, which leaves a
    multiprocessor more time for weights. bfloat16 activations for small tiles are reordered as they are, which takes
    less time, and weights are rounded to bfloat16: there the product takes less time than the load of the weights.
    """
    as_is = activation_dtype == "int8" and dtype == torch.bfloat16 and block_m < SUMS_IN_FLOAT16_FROM
    return torch.bfloat16 if as_is else torch.float16


def native_reorder_as_is(k: int, gate: str = "", up_offset: int = 0) -> Native:
    """The kernel that reorders bfloat16 activations as they are.

    With a ``gate``, an activation function, it computes them first. ``up`` begins ``up_offset`` columns behind the
    address that the kernel is given for it.
    """
    defines = {
        "K": k, "X_DTYPE": DTYPE_CODES["bfloat16"], "GATE": GATE_CODES[gate], "UP_OFFSET": up_offset,
        "THREADS": _THREADS, "SEMAPHORES": SEMAPHORES,
    }  # fmt: skip
    return Native("activations/hopper/reorder_as_is.cu", f"{ARCH}a", _THREADS, 0, tuple(defines.items()))


def ctas_as_is(k: int) -> int:
    """CTAs of ``native_reorder_as_is`` that share a row: eight threads reorder 128 columns."""
    return -(-k // (16 * _THREADS))


def max_exponent(activation_dtype: str) -> int:
    """The largest activation of a k segment is below two to the power of this plus one, once it is divided: small where
    sums are in float16, which they must not overflow."""
    return 1 if activation_dtype == "int8" else 13


def native_reorder(
    k: int, dtype: str, activation_dtype: str, k_segments: int, gate: str = "", up_offset: int = 0
) -> Native:
    """The kernel that reorders activations as float16; a CTA for each of ``k_segments`` of a row.

    ``gate`` and ``up_offset`` as in ``native_reorder_as_is``.
    """
    steps = steps_of_segment(k, k_segments)
    few = 1 if steps * 16 <= _FEW_ITEMS else _GATED_ITEMS if gate else _ITEMS
    items = max(few, -(-steps * 16 // _MAX_THREADS))
    threads = -(-steps * 16 // (items * 32)) * 32
    defines = {
        "K": k, "X_DTYPE": DTYPE_CODES[dtype], "GATE": GATE_CODES[gate], "UP_OFFSET": up_offset,
        "SEGMENT_STEPS": steps, "MAX_EXPONENT": max_exponent(activation_dtype), "THREADS": threads, "ITEMS": items,
        "SEMAPHORES": SEMAPHORES,
    }  # fmt: skip
    return Native("activations/hopper/reorder.cu", f"{ARCH}a", threads, 128, tuple(defines.items()))


def steps_of_segment(k: int, k_segments: int) -> int:
    """Steps of 256 columns that a k segment has; the last one may have fewer."""
    return -(-k // (_STEP * k_segments))


def fits_k(k: int) -> bool:
    """Whether rows of ``k`` columns can be tiled. A semaphore counts the CTAs that share a tile in eight bits, and they
    are at most as many as the tile has steps."""
    return k % _STEP == 0 and 0 < k < _STEP << 8

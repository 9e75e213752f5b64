"""How the kernels that reorder activations on Hopper are compiled."""

from __future__ import annotations

import torch

from etcuda.kernels.activations.reference import SUMS_IN_FLOAT16_FROM
from etcuda.kernels.cuda import Native

ARCH = "sm_90"
SEMAPHORES = 1024  # That activations come with: one for each tile that is shared, of which programs are more.
# Number types as ptx.cuh counts them.
KINDS = {"bfloat16": 0, "float16": 1, "float32": 2}
# Gated activations as columns.cuh counts them; "" for activations as they come.
GATES = {"": 0, "silu": 1, "gelu_tanh": 2, "gelu_erf": 3}
_STEP = 256  # Columns.
_THREADS = 128  # With 32 registers each they fit beside the greatest product.
_ITEMS = 2  # Of 16 activations, that a thread puts in order at least where there are many, and more where it must.
_GATED_ITEMS = 3  # Of gated ones, which take longer: more loads are on their way.
_FEW_ITEMS = 384  # Of a k segment: so few have a thread each.
_MOST_THREADS = 1024


def multiplies_in(dtype: torch.dtype, activation_dtype: str, block_m: int) -> torch.dtype:
    """The type in which the kernel multiplies activations of a type that are put in order for tiles of ``block_m``.

    Where they may be rounded, they are not: sums are in float16, beside which a multiprocessor has more time for
    weights. bfloat16 ones for small tiles, whose products take less than the read of the weight, are put in order as
    they are, which takes less, and weights are rounded to bfloat16.
    """
    as_is = activation_dtype == "int8" and dtype == torch.bfloat16 and block_m < SUMS_IN_FLOAT16_FROM
    return torch.bfloat16 if as_is else torch.float16


def native_reorder_as_is(k: int, gate: str = "", up_offset: int = 0) -> Native:
    """The kernel that puts bfloat16 activations in order as they are; of a ``gate`` it computes them first, whose other
    factor begins ``up_offset`` columns behind the address that it is given."""
    defines = {
        "K": k, "X": KINDS["bfloat16"], "GATE": GATES[gate], "UP_OFFSET": up_offset, "THREADS": _THREADS,
        "SEMAPHORES": SEMAPHORES,
    }  # fmt: skip
    return Native("activations/hopper/reorder_as_is.cu", f"{ARCH}a", _THREADS, 0, tuple(defines.items()))


def ctas_as_is(k: int) -> int:
    """Programs of ``native_reorder_as_is`` that share a row: eight threads have 128 columns."""
    return -(-k // (16 * _THREADS))


def greatest_exponent(activation_dtype: str) -> int:
    """Of two, of the greatest activation of a row that is put in order in float16: where sums are in float16, so small
    that they fit."""
    return 1 if activation_dtype == "int8" else 13


def native_reorder(k: int, dtype: str, activation_dtype: str, count: int, gate: str = "", up_offset: int = 0) -> Native:
    """The kernel that puts activations in order in float16; a program for each of ``count`` k_segments of a row. The
    rest as of ``native_reorder_as_is``."""
    run = steps_of_segment(k, count)
    few = 1 if run * 16 <= _FEW_ITEMS else _GATED_ITEMS if gate else _ITEMS
    items = max(few, -(-run * 16 // _MOST_THREADS))
    threads = -(-run * 16 // (items * 32)) * 32
    defines = {
        "K": k, "X": KINDS[dtype], "GATE": GATES[gate], "UP_OFFSET": up_offset, "RUN": run,
        "TOP": greatest_exponent(activation_dtype), "THREADS": threads, "ITEMS": items, "SEMAPHORES": SEMAPHORES,
    }  # fmt: skip
    return Native("activations/hopper/reorder.cu", f"{ARCH}a", threads, 128, tuple(defines.items()))


def steps_of_segment(k: int, count: int) -> int:
    return -(-k // (_STEP * count))


def fits_k(k: int) -> bool:
    """Whether rows of ``k`` can be tiled: those that share a tile's steps are counted in eight bits."""
    return k % _STEP == 0 and 0 < k < _STEP << 8

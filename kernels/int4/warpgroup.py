"""The product of int4 weights with 9 to 128 rows of activations on Hopper, in CUDA C++ (``order.cu`` and
``warpgroup.cu``): when it serves, and how it is compiled."""

from __future__ import annotations

import torch

from etcuda.kernels.native import Native
from etcuda.kernels.quantized_reference import SUMS_IN_FLOAT16_FROM

ARCH = "sm_90"
TICKETS = 1024  # That activations come with: one for each tile that is shared, of which programs are more.
# Number types as ptx.cuh counts them.
KINDS = {"bfloat16": 0, "float16": 1, "float32": 2}
# Gated activations as order_columns.cuh counts them; "" for activations as they come.
GATES = {"": 0, "silu": 1, "gelu_tanh": 2, "gelu_erf": 3}
_OFFSETS = {"symmetric": 0, "zero_point": 1, "minimum": 2}
_STEP = 256  # Columns.
_SCALE_STAGES = 7
_THREADS = 128  # With 32 registers each they fit beside the greatest product.
_ITEMS = 2  # Of 16 activations, that a thread puts in order at least where there are many, and more where it must.
_GATED_ITEMS = 3  # Of gated ones, which take longer: more loads are on their way.
_FEW_ITEMS = 384  # Of a stretch: so few have a thread each.
_MOST_THREADS = 1024


def x_stages(block_m: int) -> int:
    """Stages of activations, half a step each."""
    return 4 if block_m <= 64 else 3


def shared_bytes(block_m: int, warpgroups: int, stages: int, offset: str) -> int:
    """Shared memory of a block, as warpgroup.cu lays it out."""
    rows = 64 * warpgroups
    zero = {"symmetric": 0, "zero_point": 8, "minimum": 16}[offset]
    x = x_stages(block_m) * (block_m * 256 + 16)
    factors = warps(warpgroups) * block_m * 4 if block_m <= 64 else 0
    return x + stages * rows * 128 + _SCALE_STAGES * rows * (16 + zero) + 64 + factors


def warps(warpgroups: int) -> int:
    """Warps that multiply."""
    return 4 * warpgroups


def fits(n: int, k: int, bits: int, group_size: int, storage: str, arch: str) -> bool:
    """Whether the kernel takes a weight; it counts bytes in 32 bits, and those that share a tile's steps in eight."""
    format_fits = bits == 4 and group_size == 32 and storage == "fp16"
    return arch == ARCH and format_fits and k % _STEP == 0 and k < _STEP << 8 and n * k < 1 << 33


def native(
    k: int, kind: str, activation: str, count: int, offset: str, block_m: int, warpgroups: int, stages: int, out: str,
    bias: str | None,
) -> Native:  # fmt: skip
    """The kernel for a weight; ``kind``, in which it multiplies, ``out`` and ``bias`` are names of dtypes, ``count`` is
    the number of ``stretches`` in which rows of activations were put in order."""
    defines = {
        "K": k,
        "BLOCK_M": block_m,
        "WARPGROUPS": warpgroups,
        "STAGES": stages,
        "X_STAGES": x_stages(block_m),
        "TYPE": KINDS[kind],
        "HALF_SUMS": int(kind == "float16" and activation == "int8"),
        "RUN": _run(k, count),
        "OFFSET": _OFFSETS[offset],
        "HAS_BIAS": int(bias is not None),
        "OUT": KINDS[out],
        "BIAS": KINDS[bias or out],
    }
    shared = shared_bytes(block_m, warpgroups, stages, offset)
    return Native("int4/warpgroup.cu", f"{ARCH}a", 128 * warpgroups + 64, shared, tuple(defines.items()))


def multiplies_in(dtype: torch.dtype, activation: str, block_m: int) -> torch.dtype:
    """The type in which the kernel multiplies activations of a type that are put in order for tiles of ``block_m``.

    Where they may be rounded, they are not: sums are in float16, beside which a multiprocessor has more time for
    weights. bfloat16 ones for small tiles, whose products take less than the read of the weight, are put in order as
    they are, which takes less, and weights are rounded to bfloat16.
    """
    as_is = activation == "int8" and dtype == torch.bfloat16 and block_m < SUMS_IN_FLOAT16_FROM
    return torch.bfloat16 if as_is else torch.float16


def native_order_as_is(k: int, gate: str = "", up_offset: int = 0) -> Native:
    """The kernel that puts bfloat16 activations in order as they are; of a ``gate`` it computes them first, whose other
    factor begins ``up_offset`` columns behind the address that it is given."""
    defines = {
        "K": k, "X": KINDS["bfloat16"], "GATE": GATES[gate], "UP_OFFSET": up_offset, "THREADS": _THREADS,
        "TICKETS": TICKETS,
    }  # fmt: skip
    return Native("int4/order_as_is.cu", f"{ARCH}a", _THREADS, 0, tuple(defines.items()))


def programs_as_is(k: int) -> int:
    """Programs of ``native_order_as_is`` that share a row: eight threads have 128 columns."""
    return -(-k // (16 * _THREADS))


def greatest_exponent(activation: str) -> int:
    """Of two, of the greatest activation of a row that is put in order in float16: where sums are in float16, so small
    that they fit."""
    return 1 if activation == "int8" else 13


def native_order(k: int, dtype: str, activation: str, count: int, gate: str = "", up_offset: int = 0) -> Native:
    """The kernel that puts activations in order in float16; a program for each of ``count`` stretches of a row. The
    rest as of ``native_order_as_is``."""
    run = _run(k, count)
    few = 1 if run * 16 <= _FEW_ITEMS else _GATED_ITEMS if gate else _ITEMS
    items = max(few, -(-run * 16 // _MOST_THREADS))
    threads = -(-run * 16 // (items * 32)) * 32
    defines = {
        "K": k, "X": KINDS[dtype], "GATE": GATES[gate], "UP_OFFSET": up_offset, "RUN": run,
        "TOP": greatest_exponent(activation), "THREADS": threads, "ITEMS": items, "TICKETS": TICKETS,
    }  # fmt: skip
    return Native("int4/order.cu", f"{ARCH}a", threads, 128, tuple(defines.items()))


def _run(k: int, count: int) -> int:
    return -(-k // (_STEP * count))

"""The product of int4 weights with 9 to 128 rows of activations on Hopper, in CUDA C++ (``order.cu`` and
``warpgroup.cu``): when it serves, and how it is compiled."""

from __future__ import annotations

import torch

from etcuda.kernels.native import Native

ARCH = "sm_90"
TICKETS = 4096  # That activations come with: one for each program and warp.
# Number types as ptx.cuh counts them.
KINDS = {"bfloat16": 0, "float16": 1, "float32": 2}
_OFFSETS = {"symmetric": 0, "zero_point": 1, "minimum": 2}
_STEP = 256  # Columns.
_SCALE_STAGES = 7
_THREADS = 128  # With 32 registers each they fit beside the greatest product.
_MOST_STAGED = 65536  # Bytes of a row of activations that is brought to shared memory to be put in order.


def x_stages(block_m: int) -> int:
    """Stages of activations, half a step each."""
    return 4 if block_m <= 64 else 3


def shared_bytes(block_m: int, warpgroups: int, stages: int, offset: str) -> int:
    """Shared memory of a block, as warpgroup.cu lays it out."""
    rows = 64 * warpgroups
    zero = {"symmetric": 0, "zero_point": 8, "minimum": 16}[offset]
    x = x_stages(block_m) * (block_m * 256 + 16)
    return x + stages * rows * 128 + _SCALE_STAGES * rows * (16 + zero)


def warps(warpgroups: int) -> int:
    """Warps that multiply, each of which sums its rows of a shared tile."""
    return 4 * warpgroups


def fits(n: int, k: int, bits: int, group_size: int, storage: str, arch: str) -> bool:
    """Whether the kernel takes a weight; it counts bytes in 32 bits, and those that share a tile's steps in eight."""
    format_fits = bits == 4 and group_size == 32 and storage == "fp16"
    return arch == ARCH and format_fits and k % _STEP == 0 and k < _STEP << 8 and n * k < 1 << 33


def native(
    k: int, kind: str, offset: str, block_m: int, warpgroups: int, stages: int, out: str, bias: str | None
) -> Native:  # fmt: skip
    """The kernel for a weight; ``kind``, in which it multiplies, ``out`` and ``bias`` are names of dtypes."""
    defines = {
        "K": k,
        "BLOCK_M": block_m,
        "WARPGROUPS": warpgroups,
        "STAGES": stages,
        "X_STAGES": x_stages(block_m),
        "TYPE": KINDS[kind],
        "OFFSET": _OFFSETS[offset],
        "HAS_BIAS": int(bias is not None),
        "OUT": KINDS[out],
        "BIAS": KINDS[bias or out],
    }
    shared = shared_bytes(block_m, warpgroups, stages, offset)
    return Native("int4/warpgroup.cu", f"{ARCH}a", 128 * warpgroups + 32, shared, tuple(defines.items()))


def multiplies_in(dtype: torch.dtype, activation: str) -> torch.dtype:
    """The type in which the kernel multiplies activations of a type. Where they may be rounded, bfloat16 ones are taken
    as they are, and weights are rounded to bfloat16, which takes fewer instructions."""
    return torch.bfloat16 if activation == "int8" and dtype == torch.bfloat16 else torch.float16


def native_order_as_is(k: int) -> Native:
    """The kernel that puts bfloat16 activations in order as they are."""
    defines = {"K": k, "THREADS": _THREADS, "TICKETS": TICKETS}
    return Native("int4/order_as_is.cu", f"{ARCH}a", _THREADS, 0, tuple(defines.items()))


def programs_as_is(k: int) -> int:
    """Programs of ``native_order_as_is`` that share a row: eight threads have 128 columns."""
    return -(-k // (16 * _THREADS))


def native_order(k: int, dtype: str, rounded: bool, programs: int) -> Native:
    """The kernel that puts activations in order, ``programs`` of which share a row."""
    threads, row = 256, k * (4 if dtype == "float32" else 2)
    staged = row <= _MOST_STAGED
    defines = {
        "K": k, "X": KINDS[dtype], "ROUND": int(rounded), "THREADS": threads, "STAGED": int(staged), "TICKETS": TICKETS,
    }  # fmt: skip
    shared = threads // 8 + 16 + (row if staged else 0)
    return Native("int4/order.cu", f"{ARCH}a", threads, shared, tuple(defines.items()))

"""The product of int4 weights with 9 to 128 rows of activations on Hopper, in CUDA C++ (``order.cu`` and
``warpgroup.cu``): when it serves, and how it is compiled."""

from __future__ import annotations

from etcuda.kernels.native import Native

ARCH = "sm_90"
TICKETS = 4096  # That activations come with: one for each program and warp.
# Number types as ptx.cuh counts them.
KINDS = {"bfloat16": 0, "float16": 1, "float32": 2}
_OFFSETS = {"symmetric": 0, "zero_point": 1, "minimum": 2}
_STEP = 256  # Columns.
_UNIT = 4  # Steps whose scales are copied at once.


def x_stages(block_m: int) -> int:
    """Stages of activations, half a step each."""
    return 4 if block_m <= 64 else 3


def shared_bytes(block_m: int, warpgroups: int, stages: int, offset: str) -> int:
    """Shared memory of a block, as warpgroup.cu lays it out."""
    rows = 64 * warpgroups
    zero = {"symmetric": 0, "zero_point": 8, "minimum": 16}[offset]
    x = x_stages(block_m) * (block_m * 256 + 16)
    return x + stages * rows * 128 + (stages + _UNIT - 1) * rows * (16 + zero)


def warps(warpgroups: int) -> int:
    """Warps that multiply, each of which sums its rows of a shared tile."""
    return 4 * warpgroups


def fits(k: int, bits: int, group_size: int, storage: str, arch: str) -> bool:
    """Whether the kernel takes a weight."""
    return arch == ARCH and bits == 4 and group_size == 32 and storage == "fp16" and k % _STEP == 0


def native(k: int, offset: str, block_m: int, warpgroups: int, stages: int, out: str, bias: str | None) -> Native:
    """The kernel for a weight; ``out`` and ``bias`` are names of dtypes."""
    defines = {
        "K": k,
        "BLOCK_M": block_m,
        "WARPGROUPS": warpgroups,
        "STAGES": stages,
        "X_STAGES": x_stages(block_m),
        "OFFSET": _OFFSETS[offset],
        "HAS_BIAS": int(bias is not None),
        "OUT": KINDS[out],
        "BIAS": KINDS[bias or out],
    }
    shared = shared_bytes(block_m, warpgroups, stages, offset)
    return Native("int4/warpgroup.cu", f"{ARCH}a", 128 * warpgroups + 32, shared, tuple(defines.items()))


def native_order(k: int, dtype: str, rounded: bool, programs: int) -> Native:
    """The kernel that puts activations in order, ``programs`` of which share a row."""
    # What one pass over a program's share takes, if it is not too many.
    threads = 256 if k // 128 <= 32 * programs else 512
    defines = {"K": k, "X": KINDS[dtype], "ROUND": int(rounded), "THREADS": threads, "TICKETS": TICKETS}
    return Native("int4/order.cu", f"{ARCH}a", threads, threads // 8, tuple(defines.items()))

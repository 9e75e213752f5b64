"""The product of int4 weights with 9 to 128 rows of activations on Hopper, in CUDA C++ (``reorder.cu`` and
``gemm.cu``): when it serves, and how it is compiled."""

from __future__ import annotations

from etcuda.kernels.activations.hopper.reorder import ARCH, KINDS, fits_k, steps_of_segment
from etcuda.kernels.cuda import Native

_OFFSETS = {"symmetric": 0, "zero_point": 1, "minimum": 2}
_SCALE_STAGES = 7


def x_stages(block_m: int) -> int:
    """Stages of activations, half a step each."""
    return 4 if block_m <= 64 else 3


def shared_bytes(block_m: int, warpgroups: int, stages: int, offset: str) -> int:
    """Shared memory of a block, as gemm.cu lays it out."""
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
    return arch == ARCH and format_fits and fits_k(k) and n * k < 1 << 33


def native(
    k: int, kind: str, activation_dtype: str, count: int, offset: str, block_m: int, warpgroups: int, stages: int, out: str,
    bias: str | None,
) -> Native:  # fmt: skip
    """The kernel for a weight; ``kind``, in which it multiplies, ``out`` and ``bias`` are names of dtypes, ``count`` is
    the number of ``k_segments`` in which rows of activations were put in order."""
    defines = {
        "K": k,
        "BLOCK_M": block_m,
        "WARPGROUPS": warpgroups,
        "STAGES": stages,
        "X_STAGES": x_stages(block_m),
        "TYPE": KINDS[kind],
        "HALF_SUMS": int(kind == "float16" and activation_dtype == "int8"),
        "RUN": steps_of_segment(k, count),
        "OFFSET": _OFFSETS[offset],
        "HAS_BIAS": int(bias is not None),
        "OUT": KINDS[out],
        "BIAS": KINDS[bias or out],
    }
    shared = shared_bytes(block_m, warpgroups, stages, offset)
    return Native("linear/hopper/gemm.cu", f"{ARCH}a", 128 * warpgroups + 64, shared, tuple(defines.items()))

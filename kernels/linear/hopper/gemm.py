"""The product of int4 weights with 9 to 128 rows of activations on Hopper, in CUDA C++ (``gemm.cu``): which weights it
takes, and how it is compiled."""

from __future__ import annotations

import dataclasses

from etcuda.kernels.activations.hopper.reorder import ARCH, fits_k, steps_of_segment
from etcuda.kernels.cuda import DTYPE_CODES, Native

# As smem.cuh counts them; and bytes of zeros that a row has in a step of 256 columns.
_OFFSET_CODES = {"symmetric": 0, "zero_point": 1, "minimum": 2}
_ZERO_BYTES = {"symmetric": 0, "zero_point": 8, "minimum": 16}
_SCALE_STAGES = 7


@dataclasses.dataclass(frozen=True)
class GemmConfig:
    """What the kernel is compiled for.

    Attributes:
        k: columns of the weight.
        mma_dtype: dtype in which the tensor cores multiply, that of the reordered activations: "float16" or "bfloat16".
        activation_dtype: "int8" where activations need not be exact, else "exact".
        k_segments: of a row of activations, each divided by a power of two.
        offset: of the weight's format.
        block_m: tokens of a tile.
        warpgroups: that multiply, 64 weight rows of a tile each.
        num_stages: steps of weights in shared memory.
        out_dtype: dtype of the result.
        bias_dtype: dtype of the bias, or None where there is none.
    """

    k: int
    mma_dtype: str
    activation_dtype: str
    k_segments: int
    offset: str
    block_m: int
    warpgroups: int
    num_stages: int
    out_dtype: str
    bias_dtype: str | None

    def native(self) -> Native:
        """The kernel."""
        defines = {
            "K": self.k,
            "BLOCK_M": self.block_m,
            "WARPGROUPS": self.warpgroups,
            "STAGES": self.num_stages,
            "X_STAGES": x_stages(self.block_m),
            "MMA_DTYPE": DTYPE_CODES[self.mma_dtype],
            "F16_ACCUMULATE": int(self.mma_dtype == "float16" and self.activation_dtype == "int8"),
            "SEGMENT_STEPS": steps_of_segment(self.k, self.k_segments),
            "OFFSET": _OFFSET_CODES[self.offset],
            "HAS_BIAS": int(self.bias_dtype is not None),
            "OUT_DTYPE": DTYPE_CODES[self.out_dtype],
            "BIAS_DTYPE": DTYPE_CODES[self.bias_dtype or self.out_dtype],
        }
        threads = 128 * self.warpgroups + 2 * 32  # One warp more loads activations, and one plans the fixup.
        shared = shared_bytes(self.block_m, self.warpgroups, self.num_stages, self.offset)
        return Native("linear/hopper/gemm.cu", f"{ARCH}a", threads, shared, tuple(defines.items()))


def x_stages(block_m: int) -> int:
    """Stages of activations, half a step of 256 columns each."""
    return 4 if block_m <= 64 else 3


def shared_bytes(block_m: int, warpgroups: int, num_stages: int, offset: str) -> int:
    """Shared memory of a block, as smem.cuh lays it out."""
    rows = 64 * warpgroups
    x = x_stages(block_m) * (block_m * 256 + 2 * 8)  # With two mbarriers for each stage.
    weights = num_stages * rows * 128
    scales = _SCALE_STAGES * rows * (16 + _ZERO_BYTES[offset])
    fixup = 4 * 8 + 2 * 16  # Three mbarriers and the chunks; two shared tiles.
    factors = 4 * warpgroups * block_m * 4 if block_m <= 64 else 0
    return x + weights + scales + fixup + factors


def fits(n: int, k: int, bits: int, group_size: int, storage: str, arch: str) -> bool:
    """Whether the kernel takes a weight. It counts bytes in 32 bits."""
    format_fits = bits == 4 and group_size == 32 and storage == "fp16"
    return arch == ARCH and format_fits and fits_k(k) and n * k < 1 << 33

"""The products of experts for many tokens on Hopper, in CUDA C++ (``grouped.cu``): which calls they take, and how
the kernel is compiled."""

from __future__ import annotations

import dataclasses

import torch

from etcuda.kernels.activations.hopper.reorder import ARCH, GATE_CODES, fits_k
from etcuda.kernels.cuda import DTYPE_CODES, Native
from etcuda.kernels.experts.problem import ExpertsProblem

# The most rows of an expert in a tile; an instruction takes 32, 64, 80 or as many.
BLOCK_M = 96
# Rows of activations are rounded up to so many, so that an argument of the kernel is never 1.
ROWS = 16
_MMA_WARPS, _LOAD_WARPS = 16, 4
_BLOCK_N = 16 * _MMA_WARPS  # Weight rows of a tile.
# As layout.cuh counts them; and bytes of zeros that a row has in a step of 256 columns.
_OFFSET_CODES = {"symmetric": 0, "zero_point": 1, "minimum": 2}
_ZERO_BYTES = {"symmetric": 0, "zero_point": 8, "minimum": 16}
_STAGES = {4: 3, 16: 4}  # Of weights, by their bits.
_X_STAGES, _SCALE_STAGES = 3, 7
_PLACES, _TARGET_PLACES = 8, 4
_MOST_BYTES = 1 << 32  # Of a tensor: the kernel counts them in 32 bits.


@dataclasses.dataclass(frozen=True)
class GroupedConfig:
    """What the kernel is compiled for.

    Attributes:
        k: columns of a matrix.
        n: features: its rows, or with a gate half of them.
        gate: the activation, or "" where there is none.
        top_k: experts of a token.
        bits: of a weight: 4, or 16 for bfloat16.
        offset: of the weights' format; "symmetric" for bfloat16.
    """

    k: int
    n: int
    gate: str
    top_k: int
    bits: int
    offset: str

    def native(self) -> Native:
        """The kernel."""
        defines = {
            "K": self.k, "N": self.n, "GATE": GATE_CODES[self.gate], "TOP_K": self.top_k, "BITS": self.bits,
            "BLOCK_M": BLOCK_M, "STAGES": _STAGES[self.bits], "X_STAGES": _X_STAGES,
            "MMA_DTYPE": DTYPE_CODES["bfloat16"], "F16_ACCUMULATE": 0, "OFFSET": _OFFSET_CODES[self.offset],
        }  # fmt: skip
        threads = 32 * (_MMA_WARPS + _LOAD_WARPS)
        return Native(
            "experts/hopper/grouped.cu",
            f"{ARCH}a",
            threads,
            shared_bytes(self.bits, self.offset),
            tuple(defines.items()),
        )


def shared_bytes(bits: int, offset: str) -> int:
    """Shared memory of a block, as layout.cuh lays it out."""
    x = _X_STAGES * (BLOCK_M * 256 + 2 * 8)  # With two mbarriers for each stage.
    weights = _STAGES[bits] * _BLOCK_N * 128
    scales = 0 if bits == 16 else _SCALE_STAGES * _BLOCK_N * (16 + _ZERO_BYTES[offset])
    return x + weights + scales + _PLACES * 16 + _TARGET_PLACES * BLOCK_M * 4


def refuse(problem: ExpertsProblem, dtype: torch.dtype) -> str | None:
    """Why the kernel does not compute a call with activations of ``dtype``; ``None`` if it does.

    It multiplies in bfloat16, to which it rounds quantised weights.
    """
    if problem.quantized and (problem.bits, problem.group_size, problem.storage) != (4, 32, "fp16"):
        return (
            f"quantised weights are of 4 bits in groups of 32 with fp16 scales, got {problem.bits} bits in groups of "
            f"{problem.group_size} with {problem.storage} scales"
        )
    if problem.down is not None:
        return f"weights of both products have one format, got {problem.down} of the second"
    if problem.has_bias:
        return "products have no bias, got one"
    if problem.activation not in GATE_CODES:
        named = ", ".join(name for name in GATE_CODES if name)
        return f"the activation is one of {named}, got {problem.activation}"
    if dtype != torch.bfloat16:
        return f"activations are bfloat16, got {dtype}"
    if problem.quantized and problem.activation_dtype != "int8":
        return f"activations of quantised weights need not be exact, got activation_dtype {problem.activation_dtype!r}"
    for name, size in (("hidden", problem.hidden), ("width", problem.width)):
        if not fits_k(size):
            return f"{name} is a multiple of 256 below 65536, got {size}"
    nbytes = problem.num_experts * 2 * problem.width * problem.hidden * problem.bits // 8
    return None if nbytes < _MOST_BYTES else f"gate_up has less than {_MOST_BYTES} bytes, got {nbytes}"

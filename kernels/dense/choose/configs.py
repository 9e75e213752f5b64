"""Configurations of the kernels, their launches on one GPU, and candidates: those worth measuring, the guess first."""

from __future__ import annotations

import dataclasses

from etcuda.kernels.common.device import Device
from etcuda.kernels.dense.problem import DenseProblem

# Registers of a thread that may hold weights and activations, so that none are spilled.
_HELD = 160
# Columns that the lanes of a warp load at a time.
_WARP = 256


@dataclasses.dataclass(frozen=True)
class DenseConfig:
    """How up to eight tokens are multiplied.

    Attributes:
        block_n: rows of a tile; of a gated product so many pairs.
        block_k: columns of a tile; of CTAs that keep the activations, K rounded up to a power of two.
        num_warps: warps of a CTA, which lie along the columns.
        ctas_per_sm: CTAs per multiprocessor, which keep the activations and walk over tiles; 0 for a CTA for each tile.
    """

    block_n: int
    block_k: int
    num_warps: int
    ctas_per_sm: int

    def launch(self, tokens: int, num_sms: int, pdl: int) -> DenseLaunch:
        """The launch on a GPU of so many multiprocessors, for up to ``tokens``."""
        return DenseLaunch(padded(tokens), self.ctas_per_sm * num_sms, self.block_n, self.block_k, self.num_warps, pdl)


@dataclasses.dataclass(frozen=True)
class LibraryConfig:
    """The library's product, which is measured beside; it has nothing to choose.

    Attributes:
        version: of cuBLAS, as the library says it.
    """

    version: int


@dataclasses.dataclass(frozen=True)
class DenseLaunch:
    """A ``DenseConfig`` on one GPU: the trailing integers of the operator.

    Attributes:
        tokens: 1, 2, 4 or 8, at least M.
        ctas: that keep the activations, or 0 for a CTA for each tile.
        block_n, block_k, num_warps: as in the configuration.
        pdl: 1 to launch the kernel while the one in front of it runs, which must not write the weight.
    """

    tokens: int
    ctas: int
    block_n: int
    block_k: int
    num_warps: int
    pdl: int

    def to_args(self) -> tuple[int, ...]:
        """As the operator takes it."""
        return dataclasses.astuple(self)


def padded(number: int) -> int:
    """The power of two that is not less."""
    return 1 << max(number - 1, 0).bit_length()


def candidates(problem: DenseProblem, device: Device) -> list[DenseConfig]:
    """What may be best, the guess first."""
    tokens, tiles = padded(problem.m), 1 + problem.gated
    found: dict[DenseConfig, None] = {}
    shapes = (
        (4, 1024, 4), (2, 1024, 4), (8, 1024, 4), (4, 512, 2), (8, 512, 2), (2, 512, 2), (4, 2048, 8), (2, 2048, 8),
        (2, 2048, 4), (4, 2048, 4), (1, 2048, 4), (1, 1024, 4), (8, 256, 1), (4, 256, 1), (16, 256, 1), (1, 1024, 2),
        (2, 1024, 2), (4, 1024, 2), (1, 512, 2), (2, 4096, 8),
    )  # fmt: skip
    for block_n, block_k, warps in shapes:
        small = block_k <= max(padded(problem.k), _WARP) and problem.n >= block_n
        if small and _registers(problem, tokens, block_n * tiles, block_k, warps) <= _HELD:
            found[DenseConfig(block_n, block_k, warps, 0)] = None
    wide = max(padded(problem.k), _WARP)
    for block_n, warps in ((2, 4), (1, 4), (4, 4), (2, 8), (1, 8), (4, 8), (4, 2), (2, 2), (8, 1), (4, 1), (1, 16)):
        held = _registers(problem, tokens, block_n * tiles, wide, warps) + tokens * wide // (32 * warps) // 2
        if wide >= _WARP * warps and held <= _HELD and problem.n >= block_n:
            fitting = min(2048, 65536 // (held + 40)) // (32 * warps)
            found |= dict.fromkeys(
                DenseConfig(block_n, wide, warps, ctas) for ctas in (2, 4, 8, 16) if ctas <= max(fitting, 2)
            )
    return list(found) or [DenseConfig(1, _WARP, 1, 0)]


def _registers(problem: DenseProblem, tokens: int, rows: int, block_k: int, warps: int) -> int:
    """Of a thread, for two tiles of weights, one of activations in fp32, and sums."""
    columns = max(block_k // (32 * warps), 8)
    return 2 * rows * columns // 2 + tokens * columns + tokens * rows * columns // 8

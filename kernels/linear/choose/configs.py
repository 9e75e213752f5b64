"""Configurations of the kernels: those worth measuring, and the guess where nothing was measured."""

from __future__ import annotations

import dataclasses

from etcuda.kernels.common.device import Device
from etcuda.kernels.linear.hopper.gemm import fits, shared_bytes
from etcuda.kernels.linear.problem import MAX_TOKENS, LinearProblem

# Of a multiprocessor, and the most that a thread may have, on every GPU of compute capability 8.0 and later.
_REGISTERS = 65536
_MOST_REGISTERS = 255


@dataclasses.dataclass(frozen=True)
class MatvecConfig:
    """How up to eight rows are multiplied.

    Attributes:
        rounded: 1 if a kernel of its own rounds the activations, which then walks along K; 0 if the product does.
        resident: 1 for ``resident_kernel``, which keeps a whole row of activations; 0 for ``stepped_kernel``.
        block_n: weight rows of a tile.
        blocks: blocks of 32 of a tile; of the resident kernel, those of a row rounded up to a power of two.
        num_warps: warps of a program.
        num_stages: tiles in flight in shared memory; 1 for registers.
        ctas_per_sm: programs per multiprocessor of the resident kernel, else 0.
    """

    rounded: int
    resident: int
    block_n: int
    blocks: int
    num_warps: int
    num_stages: int
    ctas_per_sm: int

    @property
    def order(self) -> MatvecConfig:
        """What decides in which order a row is summed, and so its bits: all but the rows of a tile and the programs.

        A row's blocks go to lanes, then to warps, then to registers, whatever rows are beside it in a tile, and which
        program takes a tile does not change what it computes. Every other field changes how blocks are spread, or which
        instructions the compiler fuses.
        """
        return dataclasses.replace(self, block_n=0, ctas_per_sm=0)


@dataclasses.dataclass(frozen=True)
class MatmulConfig:
    """How many rows are multiplied.

    Attributes:
        block_n: weight rows of a tile.
        block_m: activation rows of a tile.
        blocks: blocks of 32 along K of a step.
        num_warps: warps of a program.
        num_stages: steps whose loads are in flight.
        ctas_per_sm: programs per multiprocessor, which share tiles; 0 for one program per tile.
        max_registers: that a thread may use, so that ``ctas_per_sm`` programs fit; 0 for as many as the compiler takes.
        warpgroups: that multiply, 64 weight rows each, of the kernel in gemm.cu; 0 for Triton's.
    """

    block_n: int
    block_m: int
    blocks: int
    num_warps: int
    num_stages: int
    ctas_per_sm: int
    max_registers: int = 0
    warpgroups: int = 0

    def serves(self, problem: LinearProblem, arch: str) -> bool:
        """Whether the kernel takes the problem's weight."""
        return not self.warpgroups or fits(
            problem.n, problem.k, problem.bits, problem.group_size, problem.storage, arch
        )


def padded(number: int) -> int:
    """The power of two that is not less."""
    return 1 << max(number - 1, 0).bit_length()


def matvec_candidates(problem: LinearProblem, device: Device) -> list[MatvecConfig]:
    """What may be best for up to eight rows, the guess first."""
    blocks = padded(problem.k // 32)
    tokens = padded(min(problem.m, MAX_TOKENS))
    found: dict[MatvecConfig, None] = {}
    stepped = ((4, 64, 2), (4, 32, 1), (8, 32, 1), (8, 64, 2), (4, 128, 4), (8, 128, 4), (2, 64, 2), (2, 32, 1))
    fits = [each for each in stepped if each[1] <= max(blocks, 32)]
    if problem.itemsize == 2 and tokens == 1:
        for block_n, warps in ((4, 4), (2, 2), (8, 4), (2, 4), (4, 2), (4, 8), (2, 8), (8, 2)):
            per_lane = block_n * blocks // (32 * warps)
            if 32 * warps > max(blocks, 32) or not 2 <= per_lane <= 16 or blocks > 128 * warps:
                continue
            found |= dict.fromkeys(
                MatvecConfig(0, 1, block_n, blocks, warps, 1, ctas_per_sm)
                for ctas_per_sm in ((4, 8, 16, 2) if warps < 8 else (2, 4, 1))
            )
        found |= dict.fromkeys(MatvecConfig(0, 0, n, b, w, 1, 0) for n, b, w in fits)
    found |= dict.fromkeys(MatvecConfig(1, 0, n, b, w, 1, 0) for n, b, w in fits if n * tokens <= 64)
    return list(found)


def matmul_candidates(problem: LinearProblem, device: Device) -> list[MatmulConfig]:
    """What may be best for many rows, the guess first."""
    block_m = min(256, max(16, padded(problem.m)))
    if block_m >= 128:
        shapes = [(128, block_m, 4, 8, 3), (128, 128, 4, 8, 3), (128, 128, 4, 4, 3), (64, block_m, 4, 4, 3)]
    else:
        few = ((64, 8, 3), (128, 8, 3), (128, 8, 2), (64, 16, 3), (64, 8, 4), (128, 4, 4), (64, 4, 4))
        shapes = [(block_n, block_m, blocks, 4, stages) for block_n, blocks, stages in few]
    found: dict[MatmulConfig, None] = {}
    for block_n, rows, blocks, warps, stages in shapes:
        fits = int(device.shared_memory_per_block * 0.98) // max(
            1, _shared_bytes(problem, block_n, rows, blocks, stages)
        )
        limit = fits if rows < 128 else min(fits, 2 if block_n * rows <= 128 * 128 else 1)
        for ctas_per_sm in (2, 1, 3, 4, 0):
            if fits and ctas_per_sm <= limit:
                found[
                    MatmulConfig(block_n, rows, blocks, warps, stages, ctas_per_sm, _registers(ctas_per_sm, warps))
                ] = None
    found |= dict.fromkeys(_warpgroup_candidates(problem, device, min(block_m, 128)))
    # What fits every GPU of compute capability 8.0 and later.
    return list(found) or [MatmulConfig(64, min(block_m, 64), 4, 4, 2, 1)]


def _warpgroup_candidates(problem: LinearProblem, device: Device, block_m: int) -> list[MatmulConfig]:
    found = []
    # With the registers that a thread may have when two warps more, which do not multiply, have as many.
    for warpgroups, stages, registers in ((4, 3, 96), (3, 3, 128), (3, 4, 128), (2, 4, 168)):
        config = MatmulConfig(64 * warpgroups, block_m, 8, 4 * warpgroups, stages, 1, 0, warpgroups)
        shared = shared_bytes(block_m, warpgroups, stages, problem.offset)
        small = block_m // 2 + 64 <= registers and shared <= device.shared_memory_per_block
        if small and config.serves(problem, device.arch):
            found.append(config)
    return found


def _registers(ctas_per_sm: int, warps: int) -> int:
    """The bound under which ``ctas_per_sm`` programs fit where they would not without one; 0 for none."""
    each = _REGISTERS // (32 * warps * max(ctas_per_sm, 1))
    return each - each % 8 if each < _MOST_REGISTERS else 0


def _shared_bytes(problem: LinearProblem, block_n: int, block_m: int, blocks: int, stages: int) -> int:
    weights = block_n * blocks * (problem.bits * 4 + 4)
    return stages * (weights + 2 * 32 * blocks * block_m)

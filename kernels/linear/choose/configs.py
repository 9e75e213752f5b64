"""Configurations of the kernels, their launches on one GPU, and the candidates: those worth measuring, the guess first."""

from __future__ import annotations

import dataclasses

from etcuda.kernels.common.device import Device
from etcuda.kernels.formats.registry import find
from etcuda.kernels.linear.hopper.gemm import fits, shared_bytes
from etcuda.kernels.linear.problem import MAX_TOKENS, LinearProblem

# Of a multiprocessor, and the most that a thread may have, on every GPU of compute capability 8.0 and later.
_REGISTERS = 65536
_MOST_REGISTERS = 255


@dataclasses.dataclass(frozen=True)
class MatvecConfig:
    """How up to eight tokens are multiplied.

    Attributes:
        quantized: 1 if a kernel of its own quantizes the activations, and the product walks along K; 0 if the product
            quantizes them.
        resident: 1 for ``resident_kernel``, which keeps all activations of a token; 0 for ``stepped_kernel``.
        block_n: weight rows of a tile.
        blocks: blocks of 32 of a tile; of the resident kernel, those of a row rounded up to a power of two.
        num_warps: warps of a CTA.
        num_stages: tiles in flight in shared memory; 1 for registers.
        ctas_per_sm: CTAs per multiprocessor of the resident kernel, else 0.
    """

    quantized: int
    resident: int
    block_n: int
    blocks: int
    num_warps: int
    num_stages: int
    ctas_per_sm: int

    @property
    def split(self) -> MatvecConfig:
        """What decides how the sum of a row is split, and so its bits: all but the rows of a tile and the CTAs.

        A row's blocks go to lanes, then to warps, then to registers, whatever rows are beside it in a tile, and which
        CTA takes a tile does not change what it computes. Every other field changes how blocks are spread, or which
        instructions the compiler fuses.
        """
        return dataclasses.replace(self, block_n=0, ctas_per_sm=0)

    def launch(self, tokens: int, num_sms: int, pdl: int) -> MatvecLaunch:
        """The launch on a GPU of so many multiprocessors, for up to ``tokens``: 1, 2, 4 or 8."""
        ctas = self.ctas_per_sm * num_sms if self.resident else 0
        return MatvecLaunch(
            bool(self.quantized), tokens, ctas, self.block_n, self.blocks, self.num_warps, self.num_stages, pdl
        )


@dataclasses.dataclass(frozen=True)
class MatmulConfig:
    """How many tokens are multiplied.

    Attributes:
        block_n: weight rows of a tile.
        block_m: tokens of a tile.
        blocks: blocks of 32 along K of a step.
        num_warps: warps of a CTA.
        num_stages: steps whose loads are in flight.
        ctas_per_sm: CTAs per multiprocessor, which share tiles (stream-K); 0 for one CTA per tile.
        max_registers: that a thread may use, so that ``ctas_per_sm`` CTAs fit; 0 for as many as the compiler takes.
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
        if not self.warpgroups:
            return True
        record = find(problem.format_name)
        return "hopper_gemm" in record.kernels and fits(
            problem.n, problem.k, record.bits, problem.group_size, problem.storage, arch
        )

    def launch(self, num_sms: int, pdl: int) -> MatmulLaunch:
        """The launch on a GPU of so many multiprocessors."""
        return MatmulLaunch(
            self.block_n, self.block_m, self.blocks, self.num_warps, self.num_stages, self.ctas_per_sm * num_sms,
            self.max_registers, self.warpgroups, pdl,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MatvecLaunch:
    """A ``MatvecConfig`` on one GPU: the trailing integers of ``*_matvec`` and ``*_matvec_quantized``.

    Attributes:
        quantized: whether activations were quantized before.
        tokens: 1, 2, 4 or 8, at least M.
        ctas: of the resident kernel, or 0 for the stepped one.
        block_n, blocks, num_warps, num_stages: as in the configuration.
        pdl: 1 to launch the kernel while the one in front of it runs, which must not write the weight.
    """

    quantized: bool
    tokens: int
    ctas: int
    block_n: int
    blocks: int
    num_warps: int
    num_stages: int
    pdl: int

    @classmethod
    def names(cls, quantized: bool) -> tuple[str, ...]:
        """Of the integers, in order. Kernels that take quantized activations are never resident."""
        left_out = ("quantized", "ctas") if quantized else ("quantized",)
        return tuple(field.name for field in dataclasses.fields(cls) if field.name not in left_out)

    def to_args(self) -> tuple[int, ...]:
        """As the operators take it."""
        return tuple(getattr(self, name) for name in self.names(self.quantized))

    @classmethod
    def from_args(cls, quantized: bool, *integers: int) -> MatvecLaunch:
        """What ``to_args`` made integers of."""
        return cls(quantized, **({"ctas": 0} | dict(zip(cls.names(quantized), integers, strict=True))))


@dataclasses.dataclass(frozen=True)
class MatmulLaunch:
    """A ``MatmulConfig`` on one GPU: the trailing integers of ``*_matmul`` and ``*_matmul_reordered``.

    Attributes:
        ctas: that share the tiles evenly, or 0 for one per tile; the rest as in the configuration.
        pdl: 1 to launch each kernel while the one in front of it runs.
    """

    block_n: int
    block_m: int
    blocks: int
    num_warps: int
    num_stages: int
    ctas: int
    max_registers: int
    warpgroups: int
    pdl: int

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Of the integers, in order."""
        return tuple(field.name for field in dataclasses.fields(cls))

    def to_args(self) -> tuple[int, ...]:
        """As the operators take it."""
        return tuple(getattr(self, name) for name in self.names())

    @classmethod
    def from_args(cls, *integers: int) -> MatmulLaunch:
        """What ``to_args`` made integers of."""
        return cls(*integers)


def padded(number: int) -> int:
    """The power of two that is not less."""
    return 1 << max(number - 1, 0).bit_length()


def matvec_candidates(problem: LinearProblem, device: Device) -> list[MatvecConfig]:
    """What may be best for up to eight tokens, the guess first."""
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
    """What may be best for many tokens, the guess first."""
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
    """The bound under which ``ctas_per_sm`` CTAs fit where they would not without one; 0 for none."""
    each = _REGISTERS // (32 * warps * max(ctas_per_sm, 1))
    return each - each % 8 if each < _MOST_REGISTERS else 0


def _shared_bytes(problem: LinearProblem, block_n: int, block_m: int, blocks: int, stages: int) -> int:
    weights = block_n * blocks * (problem.bits * 4 + 4)
    return stages * (weights + 2 * 32 * blocks * block_m)

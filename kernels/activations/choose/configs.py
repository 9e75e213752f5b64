"""Configurations of the kernels: those worth measuring, the best guess first."""

from __future__ import annotations

import dataclasses

from etcuda.kernels.activations.problem import ActivationProblem
from etcuda.kernels.common.device import Device
from etcuda.kernels.formats.base import BLOCK

# A lane loads 16 bytes of a 16-bit dtype at a time: with one such load everything is in flight at once.
_PER_LANE = 8
_MOST_PER_LANE = 32
_LANES = 32
_GUESSED_WARPS = 16
_MOST_WARPS = 32
# Rows from which the GPU is full of CTAs, so that each takes more at a time.
_MANY_ROWS = 64


@dataclasses.dataclass(frozen=True)
class ActivationConfig:
    """Of ``etcuda::rms_norm_quantize`` and ``etcuda::gate_quantize``.

    Attributes:
        blocks: blocks of 32 of a tile, a power of two. The norm walks over a row that is longer.
        num_warps: warps of a CTA.
    """

    blocks: int
    num_warps: int

    def to_args(self, pdl: int) -> tuple[int, int, int]:
        """The operators' trailing arguments; the constructor takes all but the last back."""
        return self.blocks, self.num_warps, pdl


def norm_candidates(problem: ActivationProblem, device: Device) -> list[ActivationConfig]:
    """Of the norm, a CTA a row: a tile holds the row, if that fits the registers."""
    row = _padded(problem.k // BLOCK)
    guess = _clamp(row * BLOCK // (_PER_LANE * _LANES), _GUESSED_WARPS)
    found: dict[ActivationConfig, None] = {}
    for warps in (guess, guess // 2, guess // 4, 2 * guess):
        if 1 <= warps <= _MOST_WARPS:
            found[fitting(problem, warps)] = None
    return list(found)


def fitting(problem: ActivationProblem, num_warps: int) -> ActivationConfig:
    """Of the norm: a tile of the whole row, or of as much of it as the registers of the warps hold."""
    return ActivationConfig(min(_padded(problem.k // BLOCK), _MOST_PER_LANE * num_warps), num_warps)


def gate_candidates(problem: ActivationProblem, device: Device) -> list[ActivationConfig]:
    """Of the gate: few blocks are spread over many CTAs, for what counts then is latency."""
    few = [ActivationConfig(8, 1), ActivationConfig(16, 2), ActivationConfig(4, 1)]
    many = [ActivationConfig(32, 4), ActivationConfig(64, 4)]
    return few + many if problem.m <= _MANY_ROWS else many + few


def _padded(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def _clamp(number: int, most: int) -> int:
    return min(max(number, 1), most)

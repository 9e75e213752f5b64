"""How the kernel is cut into CTAs."""

from __future__ import annotations

import dataclasses

from etcuda.kernels.sampling.problem import MAX_CTAS, MAX_WARPS, SamplingProblem

# Of a thread, where there are threads enough.
_LOGITS = 8


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Logits of a CTA, and thresholds that are tried at a time; both powers of two."""

    block: int
    parts: int

    @property
    def num_warps(self) -> int:
        """Of a CTA."""
        return min(max(self.block // _LOGITS // 32, 1), MAX_WARPS)

    def ctas(self, vocab_size: int) -> int:
        """How many there are."""
        return -(-vocab_size // self.block)

    def to_args(self) -> tuple[int, int]:
        """The operator's trailing arguments."""
        return self.block, self.parts


def choose(problem: SamplingProblem) -> SamplingConfig:
    """As many CTAs as may wait for one another, but none with less than a warp has to do."""
    block = 32 * _LOGITS
    while block * MAX_CTAS < problem.vocab_size:
        block *= 2
    return SamplingConfig(block, 8)

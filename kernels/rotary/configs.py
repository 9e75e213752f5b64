"""How the kernel is cut into CTAs."""

from __future__ import annotations

import dataclasses

from etcuda.kernels.rotary.problem import RotaryProblem

# Beyond, there are CTAs enough for every SM if one has several heads.
_FEW_ROWS = 16


@dataclasses.dataclass(frozen=True)
class RotaryConfig:
    """Heads of one token in a CTA, a power of two, and its warps."""

    heads: int
    num_warps: int

    def to_args(self, pdl: int) -> tuple[int, ...]:
        """The operator's trailing arguments."""
        return self.heads, self.num_warps, pdl


def choose(problem: RotaryProblem) -> RotaryConfig:
    """A head a CTA for few tokens, where latency counts, else several."""
    return RotaryConfig(1, 1) if problem.rows <= _FEW_ROWS else RotaryConfig(8, 4)

"""One call in numbers, its floor, and why the kernel does not serve it."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from etcuda.kernels.common.registry import Cost

# CTAs wait for one another, so that all of them must be on the GPU at once: two on each of eight SMs.
MAX_CTAS, MAX_WARPS, MAX_REGISTERS = 16, 16, 64
MAX_VOCAB_SIZE = 1 << 19


@dataclasses.dataclass(frozen=True)
class SamplingProblem:
    """One token is drawn.

    Attributes:
        vocab_size: number of tokens.
        itemsize: bytes of a logit.
    """

    vocab_size: int
    itemsize: int = 4


def problem_of(logits: Tensor) -> SamplingProblem:
    """A call of the operator in numbers."""
    return SamplingProblem(int(logits.shape[0]), logits.dtype.itemsize)


def refuse(problem: SamplingProblem) -> str | None:
    """Why the kernel does not serve the problem; ``None`` if it does."""
    if not 1 <= problem.vocab_size <= MAX_VOCAB_SIZE:
        return f"the number of tokens is 1 to {MAX_VOCAB_SIZE}, got {problem.vocab_size}"
    return None


def cost(problem: SamplingProblem) -> Cost:
    """Every logit, and a bit for each, is loaded once; one comparison."""
    return Cost(problem.vocab_size * problem.itemsize + problem.vocab_size // 8, problem.vocab_size)

"""One call in numbers, its floor, and why the kernel does not serve it."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from etcuda.kernels.common.registry import Cost
from etcuda.torch_private import hint

MAX_TOKENS = 8
DTYPES = (torch.bfloat16, torch.float16)
# Columns that a lane loads at a time, 16 bytes.
COLUMNS = 8
_MOST_K = 1 << 20  # Offsets inside a row of all tokens are 32 bits wide.


@dataclasses.dataclass(frozen=True)
class DenseProblem:
    """x [m, k] times a weight of n rows, or of two times n with a gate.

    Attributes:
        m: tokens; where their number is not fixed, the one to choose for.
        n: features of the result.
        k: columns of the weight.
        gated: 1 if the result is activation(gate) * up, else 0.
    """

    m: int
    n: int
    k: int
    gated: int = 0

    @property
    def rows(self) -> int:
        """Rows of the weight."""
        return 2 * self.n if self.gated else self.n

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight."""
        return 2 * self.rows * self.k


def problem_of(x: Tensor, weight: Tensor, activation: str) -> DenseProblem:
    """A call of the operator in numbers; dynamic sizes by their hints."""
    k, gated = hint(x.shape[-1]), int(activation != "none")
    return DenseProblem(hint(x.numel()) // max(k, 1), hint(weight.shape[0]) // (1 + gated), k, gated)


def refuse(problem: DenseProblem) -> str | None:
    """Why the kernel does not serve the problem; ``None`` if it does."""
    if problem.m > MAX_TOKENS:
        return f"at most {MAX_TOKENS} tokens, got {problem.m}"
    if problem.k % COLUMNS or problem.k <= 0:
        return f"K is a multiple of {COLUMNS}, got {problem.k}"
    if problem.k >= _MOST_K:
        return f"K is less than {_MOST_K}, got {problem.k}"
    return None


def cost(problem: DenseProblem) -> Cost:
    """What a call must do at least: read the weight and the activations, write the result."""
    nbytes = problem.weight_bytes + 2 * problem.m * (problem.k + problem.n)
    return Cost(nbytes, 2 * problem.m * problem.rows * problem.k)

"""One call of a quantised linear layer in numbers, its floor, and why no kernel serves it. int4 and int8 share it."""

from __future__ import annotations

import dataclasses

from etcuda.kernels.common.registry import Cost
from etcuda.kernels.formats.base import STEP

MAX_TOKENS = 8  # Rows that the kernels of integer dot products take.
_MOST_K = 1 << 20  # Offsets inside a tile are 32 bits wide.


@dataclasses.dataclass(frozen=True)
class LinearProblem:
    """x [m, k] times a weight [n, k].

    Attributes:
        m: rows of activations; where they are not fixed, the number to choose for.
        n: rows of the weight.
        k: its columns.
        bits: 4 or 8 bits of an integer.
        group_size: weights of a row that share a scale.
        storage: how scales are stored: "fp16", "fp32" or "codes".
        offset: "symmetric", "zero_point" or "minimum".
        activation_dtype: "int8" or "exact".
        itemsize: bytes of an activation.
    """

    m: int
    n: int
    k: int
    bits: int = 4
    group_size: int = 32
    storage: str = "fp16"
    offset: str = "zero_point"
    activation_dtype: str = "int8"
    itemsize: int = 2

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight, scales and offsets included."""
        groups = self.k // self.group_size
        number = {"fp16": 2, "fp32": 4, "codes": 1}[self.storage]
        zero = {"symmetric": 0, "zero_point": 1, "minimum": number}[self.offset]
        steps = (2 + 2 * (self.offset == "minimum")) * (self.k // STEP) if self.storage == "codes" else 0
        return self.n * (self.k * self.bits // 8 + groups * (number + zero) + steps)


def refuse(problem: LinearProblem) -> str | None:
    """Why no kernel serves the problem; ``None`` if one does."""
    if problem.k % 32:
        return f"K is a multiple of 32, got {problem.k}"
    if problem.group_size < 32 and problem.offset != "symmetric":
        return f"groups of {problem.group_size} are symmetric, got offset {problem.offset}"
    if problem.group_size % 16 or (problem.group_size > 256 and problem.group_size != problem.k):
        return f"a group is 16, 32, 64, 128, 256 or all of K, got {problem.group_size}"
    if problem.k >= _MOST_K:
        return f"K is less than {_MOST_K}, got {problem.k}"
    return None


def refuse_matvec(problem: LinearProblem) -> str | None:
    """Why the kernels of integer dot products do not serve it."""
    if problem.activation_dtype != "int8":
        return f"activations are rounded to int8, got activation {problem.activation_dtype!r}"
    if problem.m > MAX_TOKENS:
        return f"at most {MAX_TOKENS} rows, got {problem.m}"
    return refuse(problem)


def cost(problem: LinearProblem) -> Cost:
    """What a call must do at least: read the weight and the activations, write the result."""
    nbytes = problem.weight_bytes + problem.itemsize * problem.m * (problem.k + problem.n)
    return Cost(nbytes, 2 * problem.m * problem.n * problem.k)

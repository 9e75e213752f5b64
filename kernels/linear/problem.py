"""One call of a quantised linear layer in numbers, its floor, and why no kernel serves it."""

from __future__ import annotations

import dataclasses

import torch

from etcuda.kernels.common.registry import Cost
from etcuda.kernels.formats.base import GroupFormat
from etcuda.kernels.formats.registry import Kernel, find, formats

MAX_TOKENS = 8  # That the kernels of integer dot products take.
_MOST_K = 1 << 20  # Offsets inside a tile are 32 bits wide.


@dataclasses.dataclass(frozen=True)
class LinearProblem:
    """x [m, k] times a weight [n, k].

    Attributes:
        m: tokens; where their number is not fixed, the one to choose for.
        n: rows of the weight.
        k: its columns.
        format_name: of the weight, as in the registry of formats.
        group_size: weights of a row that share a scale.
        storage: how scales are stored: "fp16", "fp32" or "codes".
        offset: "symmetric", "zero_point" or "minimum".
        activation_dtype: "int8" or "exact".
        itemsize: bytes of an activation.
    """

    m: int
    n: int
    k: int
    format_name: str = "int4"
    group_size: int = 32
    storage: str = "fp16"
    offset: str = "zero_point"
    activation_dtype: str = "int8"
    itemsize: int = 2

    @classmethod
    def of(
        cls, weight_format: GroupFormat, m: int, n: int, k: int, activation_dtype: str, dtype: torch.dtype
    ) -> LinearProblem:
        """The call with a weight of a format and activations of a dtype."""
        return cls(
            m, n, k, weight_format.name, weight_format.group_size, weight_format.scale_storage, weight_format.offset,
            activation_dtype, dtype.itemsize,
        )  # fmt: skip

    @property
    def bits(self) -> int:
        """Of an integer of the weight."""
        return find(self.format_name).bits

    @property
    def weight_format(self) -> GroupFormat:
        """Format of the weight."""
        return find(self.format_name).format_type(self.group_size, self.storage, self.offset)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.n, self.k

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight, scales and offsets included."""
        return self.weight_format.nbytes(*self.weight_shape)


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
    return _without_kernel(problem, "matmul")


def refuse_matvec(problem: LinearProblem) -> str | None:
    """Why the kernels of integer dot products do not serve it."""
    if problem.activation_dtype != "int8":
        return f"activations are quantized to int8, got activation_dtype {problem.activation_dtype!r}"
    if problem.m > MAX_TOKENS:
        return f"at most {MAX_TOKENS} tokens, got {problem.m}"
    return refuse(problem) or _without_kernel(problem, "matvec")


def cost(problem: LinearProblem) -> Cost:
    """What a call must do at least: read the weight and the activations, write the result."""
    nbytes = problem.weight_bytes + problem.itemsize * problem.m * (problem.k + problem.n)
    return Cost(nbytes, 2 * problem.m * problem.n * problem.k)


def _without_kernel(problem: LinearProblem, kernel: Kernel) -> str | None:
    served = [record.name for record in formats() if kernel in record.kernels]
    if problem.format_name in served:
        return None
    return f"weights of {kernel} kernels are {' or '.join(served)}, got {problem.format_name}"

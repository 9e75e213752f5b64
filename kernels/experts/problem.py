"""One call of a mixture of experts in numbers, its floor, and why no kernel serves it."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from etcuda.kernels.common.registry import Cost
from etcuda.kernels.formats.base import DTYPES, GroupFormat
from etcuda.kernels.formats.registry import formats
from etcuda.torch_private import hint

_MOST_K = 1 << 16  # So many CTAs there can be along one side of a grid but the first.
_MOST_TOP_K = 64
_MOST_EXPERTS = 4096


@dataclasses.dataclass(frozen=True)
class ExpertsProblem:
    """Tokens [tokens, hidden], each given to ``top_k`` of ``num_experts`` experts of so many features.

    Attributes:
        tokens: where their number is not fixed, the one to choose for.
        top_k: experts of a token.
        num_experts: of which weights are stored.
        hidden: columns of a token.
        width: features of an expert.
        bits: of a stored weight.
        group_size: weights of a row that share a scale; 0 where weights are not quantised.
        storage, offset: of their format; empty where weights are not quantised.
        activation_dtype: "int8" or "exact".
        itemsize: bytes of an activation.
        down: format of the second matrices where it is not that of the first.
        activation: between the products.
        has_bias: whether something is added to a product.
    """

    tokens: int
    top_k: int
    num_experts: int
    hidden: int
    width: int
    bits: int = 4
    group_size: int = 32
    storage: str = "fp16"
    offset: str = "zero_point"
    activation_dtype: str = "int8"
    itemsize: int = 2
    down: GroupFormat | None = None
    activation: str = "silu"
    has_bias: bool = False

    @property
    def rows(self) -> int:
        """Assignments of a token to an expert."""
        return self.tokens * self.top_k

    @property
    def quantized(self) -> bool:
        """Whether weights are."""
        return self.group_size > 0

    @property
    def few_serves(self) -> bool:
        """Whether the kernels for few tokens compute it: with int8 activations, where weights are quantised."""
        return not self.quantized or (self.activation_dtype == "int8" and self.itemsize == 2)


def format_of(
    weight: Tensor, scale: Tensor | None, zero: Tensor | None, scale_step: Tensor | None, zero_step: Tensor | None,
    group_size: int,
) -> GroupFormat | None:  # fmt: skip
    """The format of stored weights; ``None`` of weights that are not quantised.

    Raises:
        WeightFormatError: there is no such format.
    """
    if scale is None:
        return None
    format_type = next(each.format_type for each in formats() if each.format_type.stored_dtype == weight.dtype)
    return format_type.of(group_size, scale, zero, scale_step, zero_step)


def problem_of(
    x: Tensor, indices: Tensor, gate_up: Tensor, gate_up_scale: Tensor | None, gate_up_zero: Tensor | None,
    gate_up_scale_step: Tensor | None, gate_up_zero_step: Tensor | None, down: Tensor, down_scale: Tensor | None,
    down_zero: Tensor | None, down_scale_step: Tensor | None, down_zero_step: Tensor | None, group_size: int,
    down_group_size: int, activation_dtype: str, activation: str = "silu", gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
) -> ExpertsProblem:  # fmt: skip
    """A call of the operator in numbers; dynamic sizes by their hints."""
    stored = format_of(gate_up, gate_up_scale, gate_up_zero, gate_up_scale_step, gate_up_zero_step, group_size)
    second = format_of(down, down_scale, down_zero, down_scale_step, down_zero_step, down_group_size)
    return ExpertsProblem(
        tokens=hint(x.shape[0]), top_k=hint(indices.shape[1]), num_experts=hint(gate_up.shape[0]),
        hidden=hint(x.shape[1]), width=hint(gate_up.shape[1]) // 2,
        bits=gate_up.dtype.itemsize * 8 if stored is None else stored.bits,
        group_size=0 if stored is None else stored.group_size,
        storage="" if stored is None else stored.scale_storage,
        offset="" if stored is None else stored.offset,
        activation_dtype=activation_dtype, itemsize=x.dtype.itemsize, down=None if second == stored else second,
        activation=activation, has_bias=gate_up_bias is not None or down_bias is not None,
    )  # fmt: skip


def refuse(problem: ExpertsProblem) -> str | None:
    """Why the kernels do not serve the problem; ``None`` if they do."""
    multiple = 32 if problem.quantized else 8
    for name, size in (("hidden", problem.hidden), ("width", problem.width)):
        if size <= 0 or size % multiple:
            return f"{name} is a multiple of {multiple}, got {size}"
        if size >= _MOST_K:
            return f"{name} is less than {_MOST_K}, got {size}"
    kinds = [(problem.group_size, problem.offset)] if problem.quantized else []
    kinds += [] if problem.down is None else [(problem.down.group_size, problem.down.offset)]
    for group_size, offset in kinds:
        if group_size < 32 and offset != "symmetric":
            return f"groups of {group_size} are symmetric, got offset {offset}"
    for name, size, most in (
        ("top_k", problem.top_k, _MOST_TOP_K),
        ("num_experts", problem.num_experts, _MOST_EXPERTS),
    ):
        if not 0 < size <= most:
            return f"{name} is from 1 to {most}, got {size}"
    return None


def cost(problem: ExpertsProblem) -> Cost:
    """What a call must do at least: read the weights of the chosen experts, all different if there are as many, and the
    activations, and write the result."""
    weights = problem.hidden * problem.width
    experts = min(problem.rows, problem.num_experts)
    bits = float(problem.bits)
    if problem.quantized:
        found = next(each.format_type for each in formats() if each.bits == problem.bits)
        bits = found(problem.group_size, problem.storage, problem.offset).bits_per_weight()
    second = bits if problem.down is None else problem.down.bits_per_weight()
    nbytes = int(experts * weights * (2 * bits + second) / 8) + 2 * problem.itemsize * problem.tokens * problem.hidden
    return Cost(nbytes, 6 * problem.rows * weights)


def is_floating(dtype: torch.dtype) -> bool:
    """Whether it is a dtype of activations."""
    return dtype in DTYPES

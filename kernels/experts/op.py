"""The operator ``etcuda::experts``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor
from torch.library import triton_op

from etcuda.errors import KernelArgumentError
from etcuda.kernels.common.memory import aligned, dense_rows, needs_reference
from etcuda.kernels.experts import launch
from etcuda.kernels.experts.check import OP, check_arguments, check_matrices
from etcuda.kernels.experts.configs import LEAST_SHARED, FewLaunch, HopperLaunch, Launch, choose, launch_of
from etcuda.kernels.experts.hopper import grouped
from etcuda.kernels.experts.matrices import Matrices
from etcuda.kernels.experts.problem import ExpertsProblem, problem_of, refuse
from etcuda.kernels.experts.reference import experts_reference


@triton_op("etcuda::experts", mutates_args=())
def experts(
    x: Tensor,
    indices: Tensor,
    routing: Tensor,
    gate_up: Tensor,
    gate_up_scale: Tensor | None,
    gate_up_zero: Tensor | None,
    gate_up_scale_step: Tensor | None,
    gate_up_zero_step: Tensor | None,
    gate_up_bias: Tensor | None,
    down: Tensor,
    down_scale: Tensor | None,
    down_zero: Tensor | None,
    down_scale_step: Tensor | None,
    down_zero_step: Tensor | None,
    down_bias: Tensor | None,
    group_size: int,
    down_group_size: int,
    activation: str,
    activation_dtype: str,
    how: Sequence[int],
) -> Tensor:
    """Of each token the weighted sum of its experts' answers, down(activation(gate(x)) * up(x)).

    With "swiglu_oai", GPT-OSS's activation, what is between them is g * sigmoid(1.702 g) * (u + 1), g being the gate,
    at most 7, and u the other product, between -7 and 7.

    Sums are fp32; what is between the two products is rounded to the dtype of ``x``. The same arguments give the same
    bits.

    Args:
        x: [tokens, hidden] bfloat16, float16 or float32.
        indices: [tokens, top_k] int32 or int64, from 0 to the number of experts less one; a token's may repeat.
        routing: [tokens, top_k] floating, the weights of the sum.
        gate_up: [experts, 2 * width, hidden] in the dtype of ``x``, the rows of the gate and then the others; or the
            integers of quantised weights of that shape: uint8 [experts, 2 * width, hidden / 2] for int4.
        gate_up_scale, gate_up_zero, gate_up_scale_step, gate_up_zero_step: of quantised weights, as in ``GroupFormat``.
        gate_up_bias: ``None`` or [experts, 2 * width] floating.
        down: [experts, hidden, width], likewise, and what follows; quantised if ``gate_up`` is, to any format.
        group_size: weights of a row of ``gate_up`` that share a scale; 0 where weights are not quantised.
        down_group_size: of ``down``, likewise.
        activation: "silu", "gelu_erf", "gelu_tanh" or "swiglu_oai".
        activation_dtype: "int8": activations may be quantised to int8 per block of 32, where weights are quantised;
            "exact": they are not.
        how: of a ``FewLaunch``, a ``ManyLaunch`` or a ``HopperLaunch``; empty for a choice by the sizes.

    Returns:
        [tokens, hidden] in the dtype of ``x``.

    Raises:
        KernelArgumentError: an argument is not one that the operator takes.
        WeightFormatError: stored tensors do not fit together.
    """
    first = (gate_up, gate_up_scale, gate_up_zero, gate_up_scale_step, gate_up_zero_step, gate_up_bias)
    second = (down, down_scale, down_zero, down_scale_step, down_zero_step, down_bias)
    groups = (group_size, down_group_size)
    matrices, problem = _check(x, indices, routing, first, second, groups, activation, activation_dtype)
    if needs_reference(x):
        return experts_reference(
            x, indices, routing, *first, *second, *groups, activation, activation_dtype
        )  # fmt: skip
    chosen = _launch(problem, x, how)
    given = (dense_rows(x), indices.contiguous(), routing.contiguous())
    if isinstance(chosen, FewLaunch):
        return launch.few(*given, _dense(matrices[0]), _dense(matrices[1]), activation, chosen)
    if isinstance(chosen, HopperLaunch):
        return launch.many_hopper(*given, matrices[0], matrices[1], activation, chosen)
    return launch.many(*given, matrices[0], matrices[1], activation, chosen)


def fake_experts(
    x: Tensor, indices: Tensor, routing: Tensor, gate_up: Tensor, gate_up_scale: Tensor | None,
    gate_up_zero: Tensor | None, gate_up_scale_step: Tensor | None, gate_up_zero_step: Tensor | None,
    gate_up_bias: Tensor | None, down: Tensor, down_scale: Tensor | None, down_zero: Tensor | None,
    down_scale_step: Tensor | None, down_zero_step: Tensor | None, down_bias: Tensor | None, group_size: int,
    down_group_size: int, activation: str, activation_dtype: str, how: Sequence[int],
) -> Tensor:  # fmt: skip
    """Checks the arguments; returns a fake result."""
    first = (gate_up, gate_up_scale, gate_up_zero, gate_up_scale_step, gate_up_zero_step, gate_up_bias)
    second = (down, down_scale, down_zero, down_scale_step, down_zero_step, down_bias)
    groups = (group_size, down_group_size)
    _, problem = _check(x, indices, routing, first, second, groups, activation, activation_dtype)
    if how:
        _launch(problem, x, how)
    return x.new_empty((x.shape[0], x.shape[1]))


experts.register_fake(fake_experts)

_Stored = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def _check(
    x: Tensor, indices: Tensor, routing: Tensor, first: _Stored, second: _Stored, groups: tuple[int, int],
    activation: str, activation_dtype: str,
) -> tuple[tuple[Matrices, Matrices], ExpertsProblem]:  # fmt: skip
    gate_up = check_matrices("gate_up", x, *first, groups[0])
    down = check_matrices("down", x, *second, groups[1])
    check_arguments(x, indices, routing, gate_up, down, activation, activation_dtype)
    problem = problem_of(
        x, indices, *first[:-1], *second[:-1], *groups, activation_dtype, activation, first[-1], second[-1]
    )  # fmt: skip
    reason = refuse(problem)
    if reason is not None:
        raise KernelArgumentError(f"{OP}: {reason}. Compute each expert by itself.")
    return (gate_up, down), problem


def _launch(problem: ExpertsProblem, x: Tensor, how: Sequence[int]) -> Launch:
    if how:
        made = launch_of(how)
        reason = grouped.refuse(problem, x.dtype) if isinstance(made, HopperLaunch) else None
        if reason is not None:
            raise KernelArgumentError(f"{OP}: how: {reason}. Give a ManyLaunch.")
        if isinstance(made, FewLaunch) and not problem.few_serves:
            raise KernelArgumentError(
                f"{OP}: how: expected a ManyLaunch for quantised weights with activation_dtype "
                f"{problem.activation_dtype!r} and activations of {problem.itemsize} bytes, got a FewLaunch."
            )
        return made
    tokens = x.shape[0]
    return choose(problem, tokens if isinstance(tokens, int) else None, LEAST_SHARED, 0)


def _dense(matrices: Matrices) -> Matrices:
    """The weights at addresses that are multiples of 16."""
    if matrices.format is not None:
        return matrices
    return dataclasses.replace(matrices, weight=aligned(matrices.weight.contiguous(), 16))

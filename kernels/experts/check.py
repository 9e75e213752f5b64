"""What the operator takes, checked alike in eager mode, on fake tensors and at export."""

from __future__ import annotations

import torch
from torch import Tensor

from etcuda.errors import KernelArgumentError
from etcuda.kernels.activations.check import check_activation_dtype
from etcuda.kernels.common.check import expect, expect_same
from etcuda.kernels.experts.matrices import Matrices
from etcuda.kernels.experts.problem import is_floating
from etcuda.kernels.experts.reference import ACTIVATIONS
from etcuda.kernels.formats.registry import formats

OP = "experts"


def check_matrices(
    name: str, x: Tensor, weight: Tensor, scale: Tensor | None, zero: Tensor | None, scale_step: Tensor | None,
    zero_step: Tensor | None, bias: Tensor | None, group_size: int,
) -> Matrices:  # fmt: skip
    """The weights that stored tensors are.

    Raises:
        KernelArgumentError, WeightFormatError: they do not fit together; the message names the tensor.
    """
    expect(weight.dim() == 3, OP, name, "three dimensions [experts, N, K]", list(weight.shape))
    fixed = all(isinstance(size, int) for size in weight.shape)
    expect(fixed, OP, name, "fixed sizes", list(weight.shape))
    expect(weight.device == x.device, OP, name, f"the device of x, {x.device}", weight.device)
    if bias is not None:
        shape = list(weight.shape[:2])
        expect(list(bias.shape) == shape, OP, f"{name}_bias", f"shape {shape}", list(bias.shape))
        expect(is_floating(bias.dtype), OP, f"{name}_bias", "bfloat16, float16 or float32", bias.dtype)
        expect(bias.device == x.device, OP, f"{name}_bias", f"the device of x, {x.device}", bias.device)
    if scale is None:
        expect(weight.dtype == x.dtype, OP, name, f"the dtype of x, {x.dtype}, or integers with scales", weight.dtype)
        others = (("zero", zero), ("scale_step", scale_step), ("zero_step", zero_step))
        for part, tensor in others:
            expect(tensor is None, OP, f"{name}_{part}", "None without scales", "a tensor")
        return Matrices(None, weight, bias=bias)
    known = [each.format_type.stored_dtype for each in formats()]
    expect(weight.dtype in known, OP, name, f"integers with scales, one of {known}", weight.dtype)
    made = Matrices.of(weight, scale, zero, scale_step, zero_step, bias, group_size)
    made.stored.format.check_components(made.stored.components, f"{OP}: {name}")
    return made


def check_arguments(
    x: Tensor, indices: Tensor, routing: Tensor, gate_up: Matrices, down: Matrices, activation: str,
    activation_dtype: str,
) -> None:  # fmt: skip
    """Checks what goes with the weights.

    Raises:
        KernelArgumentError: naming the argument, what was expected and what it is.
    """
    expect(activation in ACTIVATIONS, OP, "activation", f"one of {', '.join(ACTIVATIONS)}", repr(activation))
    check_activation_dtype(OP, activation_dtype)
    expect(is_floating(x.dtype), OP, "x", "bfloat16, float16 or float32", x.dtype)
    expect(x.dim() == 2, OP, "x", "two dimensions [tokens, hidden]", list(x.shape))
    expect_same(OP, "x", "last dimension", x.shape[1], gate_up.k)
    integers = (torch.int32, torch.int64)
    expect(indices.dtype in integers, OP, "indices", "int32 or int64", indices.dtype)
    expect(is_floating(routing.dtype), OP, "routing", "bfloat16, float16 or float32", routing.dtype)
    for name, tensor in (("indices", indices), ("routing", routing)):
        expect(tensor.dim() == 2, OP, name, "two dimensions [tokens, top_k]", list(tensor.shape))
        expect(isinstance(tensor.shape[1], int), OP, name, "a fixed top_k", list(tensor.shape))
        expect_same(OP, name, "first dimension", tensor.shape[0], x.shape[0])
        expect(tensor.device == x.device, OP, name, f"the device of x, {x.device}", tensor.device)
    expect_same(OP, "routing", "last dimension", routing.shape[1], indices.shape[1])
    expect_same(OP, "down", "number of experts", down.weight.shape[0], gate_up.weight.shape[0])
    expect_same(OP, "down", "rows", down.n, gate_up.k)
    expect(gate_up.n % 2 == 0, OP, "gate_up", "as many rows for the gate as for the rest", list(gate_up.weight.shape))
    expect_same(OP, "down", "columns", down.k, gate_up.n // 2)
    if (gate_up.format is None) != (down.format is None):
        wanted = "weights as they are" if gate_up.format is None else "quantised weights"
        raise KernelArgumentError(f"{OP}: down: expected {wanted}, as of gate_up, got {down.format or 'others'}.")

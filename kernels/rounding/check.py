"""What the operators take, checked alike in eager mode, on fake tensors and at export."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.errors import KernelArgumentError
from etcuda.kernels.groups import BLOCK
from etcuda.kernels.int4.check import DTYPES
from etcuda.kernels.rounding.problem import RoundingProblem, refuse

ACTIVATIONS = ("silu", "gelu_tanh", "gelu_erf")
_KINDS = "bfloat16, float16 or float32"


def check_norm(
    op: str, x: Tensor, residual: Tensor | None, weight: Tensor | None, eps: float, blocks: int, num_warps: int
) -> int:
    """Checks the arguments of a norm; returns K.

    Raises:
        KernelArgumentError: naming the argument, what was expected and what it is.
    """
    k = _check_rows(op, "x", x, 1)
    if residual is not None:
        _check_like(op, "residual", residual, "x", x)
    if weight is not None:
        _expect(weight.dtype in DTYPES, op, "weight", _KINDS, weight.dtype)
        _expect(tuple(weight.shape) == (k,), op, "weight", f"shape [{k}]", list(weight.shape))
        _expect(weight.device == x.device, op, "weight", f"the device of x, {x.device}", weight.device)
    _expect(eps > 0 and math.isfinite(eps), op, "eps", "a positive finite number", eps)
    check_config(op, blocks, num_warps)
    return k


def check_gate(op: str, gate: Tensor, up: Tensor | None, activation: str, name: str = "activation") -> int:
    """Checks a gated activation, whose kind is the argument ``name``; returns K, the numbers of a row of its result.

    Raises:
        KernelArgumentError: naming the argument, what was expected and what it is.
    """
    k = _check_rows(op, "gate", gate, 2 if up is None else 1)
    if up is not None:
        _check_like(op, "up", up, "gate", gate)
    known = ", ".join(repr(each) for each in ACTIVATIONS)
    _expect(activation in ACTIVATIONS, op, name, f"one of {known}", repr(activation))
    return k


def _check_rows(op: str, name: str, x: Tensor, parts: int) -> int:
    """The numbers of a row of the result, where ``x`` holds ``parts`` such rows side by side."""
    _expect(x.dtype in DTYPES, op, name, _KINDS, x.dtype)
    _expect(x.dim() >= 1, op, name, "at least one dimension [..., K]", list(x.shape))
    size = x.shape[-1]
    _expect(isinstance(size, int), op, name, "a fixed last dimension", size)
    if parts == 2:
        _expect(size % (2 * BLOCK) == 0, op, name, f"gate | up of 2 K columns, K a multiple of {BLOCK}", size)
    k = size // parts
    reason = refuse(RoundingProblem(1, k, x.dtype.itemsize))
    if reason is not None:
        raise KernelArgumentError(f"{op}: {name}: {reason}. Pad the rows, or round them as they are computed.")
    return k


def _check_like(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    _expect(tensor.dtype == other.dtype, op, name, f"the dtype of {other_name}, {other.dtype}", tensor.dtype)
    wanted, got = list(other.shape), list(tensor.shape)
    _expect(len(got) == len(wanted), op, name, f"the shape of {other_name}, {wanted}", got)
    for one, size in zip(got, wanted, strict=True):
        if isinstance(one, int) and isinstance(size, int):
            _expect(one == size, op, name, f"the shape of {other_name}, {wanted}", got)
        elif not statically_known_true(one == size):
            message = f"{op}: {name}: expected the shape of {other_name}, {wanted}, got {got}."
            torch._check(one == size, lambda message=message: message)
    _expect(tensor.device == other.device, op, name, f"the device of {other_name}, {other.device}", tensor.device)


def check_config(op: str, blocks: int, num_warps: int) -> None:
    """Checks a configuration.

    Raises:
        KernelArgumentError: naming the argument, what was expected and what it is.
    """
    _expect(blocks > 0 and blocks & (blocks - 1) == 0, op, "blocks", "a power of two", blocks)
    _expect(num_warps in (1, 2, 4, 8, 16, 32), op, "num_warps", "1, 2, 4, 8, 16 or 32", num_warps)


def _expect(holds: bool, op: str, name: str, expected: str, got: object) -> None:
    if not holds:
        raise KernelArgumentError(f"{op}: {name}: expected {expected}, got {got}.")

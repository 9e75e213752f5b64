"""What the operators of quantised linear layers take, checked alike in eager mode, on fake tensors and at export."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.errors import KernelArgumentError
from etcuda.kernels.groups import GroupFormat
from etcuda.kernels.int4.problem import ACTIVATIONS

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
Stored = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
PARTS = ("qdata", "scale", "zero", "scale_step", "zero_step")


def check_stored(op: str, kind: type[GroupFormat], stored: Stored, group_size: int) -> tuple[GroupFormat, int, int]:
    """The format of stored tensors, and N and K.

    Raises:
        WeightFormatError: they do not fit together; the message names the operator and the tensor.
    """
    form = kind.of(group_size, *stored[1:])
    n, k = form.check_components(dict(zip(PARTS, stored, strict=True)), op)
    return form, n, k


def check_linear(
    op: str, kind: type[GroupFormat], x: Tensor, stored: Stored, bias: Tensor | None, group_size: int, activation: str
) -> tuple[GroupFormat, int, int]:
    """Checks the arguments of a linear layer.

    Returns:
        The format of the weight, N and K.

    Raises:
        KernelArgumentError: x, bias or activation is not one that the operator takes.
        WeightFormatError: the stored tensors do not fit together.
    """
    form, n, k = check_stored(op, kind, stored, group_size)
    _expect(x.dtype in DTYPES, op, "x", "bfloat16, float16 or float32", x.dtype)
    _expect(x.dim() >= 1, op, "x", "at least one dimension [..., K]", tuple(x.shape))
    _same(op, "x", "last dimension", x.shape[-1], k)
    _expect(x.device == stored[0].device, op, "x", f"the device of qdata, {stored[0].device}", x.device)
    known = " or ".join(repr(each) for each in ACTIVATIONS)
    _expect(activation in ACTIVATIONS, op, "activation", known, repr(activation))
    if bias is not None:
        _expect(bias.is_floating_point(), op, "bias", "a floating dtype", bias.dtype)
        _expect(bias.dim() == 1, op, "bias", "one dimension [N]", tuple(bias.shape))
        _same(op, "bias", "size", bias.shape[0], n)
        _expect(bias.device == x.device, op, "bias", f"the device of x, {x.device}", bias.device)
    return form, n, k


def check_embedding(
    op: str, kind: type[GroupFormat], indices: Tensor, stored: Stored, group_size: int, dtype: torch.dtype
) -> tuple[GroupFormat, int, int]:
    """Checks the arguments of a look-up; returns the format of the weight, N and K.

    Raises:
        KernelArgumentError: indices or dtype is not one that the operator takes.
        WeightFormatError: the stored tensors do not fit together.
    """
    form, n, k = check_stored(op, kind, stored, group_size)
    _expect(indices.dtype in (torch.int32, torch.int64), op, "indices", "int32 or int64", indices.dtype)
    _expect(dtype in DTYPES, op, "dtype", "bfloat16, float16 or float32", dtype)
    where = stored[0].device
    _expect(indices.device == where, op, "indices", f"the device of qdata, {where}", indices.device)
    return form, n, k


def check_activation(op: str, x: Tensor) -> int:
    """Checks activations that are to be rounded; returns K.

    Raises:
        KernelArgumentError: another dtype, or K not a multiple of 32.
    """
    _expect(x.dtype in DTYPES, op, "x", "bfloat16, float16 or float32", x.dtype)
    _expect(x.dim() >= 1, op, "x", "at least one dimension [..., K]", tuple(x.shape))
    k = x.shape[-1]
    _expect(isinstance(k, int), op, "x", "a fixed last dimension", k)
    _expect(k > 0 and k % 32 == 0, op, "x", "K to be a multiple of 32", f"K = {k}")
    return k


def check_rounded(op: str, q: Tensor, q_scale: Tensor, q_sum: Tensor, k: int, dtype: torch.dtype) -> None:
    """Checks activations that were rounded.

    Raises:
        KernelArgumentError: they are not what ``quantize_activation`` returns for rows of ``k``.
    """
    _expect(q.dtype == torch.int8, op, "q", "int8", q.dtype)
    _expect(q.dim() == 2, op, "q", "2 dimensions [M, K]", tuple(q.shape))
    _same(op, "q", "last dimension", q.shape[1], k)
    for name, tensor in (("q_scale", q_scale), ("q_sum", q_sum)):
        _expect(tensor.dtype == torch.float32, op, name, "float32", tensor.dtype)
        _expect(tensor.dim() == 2, op, name, "2 dimensions [M, K / 32]", tuple(tensor.shape))
        _same(op, name, "first dimension", tensor.shape[0], q.shape[0])
        _same(op, name, "last dimension", tensor.shape[1], k // 32)
    _expect(dtype in DTYPES, op, "dtype", "bfloat16, float16 or float32", dtype)


def check_tokens(op: str, m: int, tokens: int) -> None:
    """Checks that ``m`` rows are at most ``tokens``.

    Raises:
        KernelArgumentError: they are more, or the kernels have no such number of rows.
    """
    _expect(tokens in (1, 2, 4, 8), op, "tokens", "1, 2, 4 or 8", tokens)
    _expect(not statically_known_true(m > tokens), op, "x", f"at most {tokens} rows", m)


def _same(op: str, name: str, what: str, got: int, expected: int) -> None:
    message = f"{op}: {name}: expected its {what} to be {expected}, got {got}."
    if isinstance(got, int) and isinstance(expected, int):
        if got != expected:
            raise KernelArgumentError(message)
    elif not statically_known_true(got == expected):
        torch._check(got == expected, lambda: message)


def _expect(holds: bool, op: str, name: str, expected: str, got: object) -> None:
    if not holds:
        raise KernelArgumentError(f"{op}: {name}: expected {expected}, got {got}.")

"""What the operator takes, checked alike in eager mode, on fake tensors and at export."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.errors import KernelArgumentError
from etcuda.kernels.common.check import expect, expect_same
from etcuda.kernels.formats.base import DTYPES
from etcuda.kernels.rotary.problem import problem_of, refuse

OP = "rotary_cache"
_DTYPE_NAMES = "bfloat16, float16 or float32"
_INTEGERS = (torch.int32, torch.int64)


def check_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    rotary_dim: int,
    consecutive: bool,
) -> None:
    """Checks tensors and numbers.

    Raises:
        KernelArgumentError: naming the argument, what was expected and what it is.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v), ("k_cache", k_cache), ("v_cache", v_cache)):
        expect(tensor.dim() == 4, OP, name, "4 dimensions", list(tensor.shape))
        expect(tensor.dtype in DTYPES, OP, name, _DTYPE_NAMES, tensor.dtype)
        expect(tensor.dtype == q.dtype, OP, name, f"the dtype of q, {q.dtype}", tensor.dtype)
        expect(tensor.device == q.device, OP, name, f"the device of q, {q.device}", tensor.device)
        fixed = isinstance(tensor.shape[1], int) and isinstance(tensor.shape[3], int)
        expect(fixed, OP, name, "fixed numbers of heads and of their width", list(tensor.shape))
        expect_same(OP, name, "batch size", tensor.shape[0], q.shape[0])
        expect_same(OP, name, "head_dim", tensor.shape[3], q.shape[3])
    for name, tensor in (("v", v), ("k_cache", k_cache), ("v_cache", v_cache)):
        expect_same(OP, name, "number of heads", tensor.shape[1], k.shape[1])
    for name, tensor in (("k", k), ("v", v)):
        expect_same(OP, name, "number of tokens", tensor.shape[2], q.shape[2])
    for name, tensor in (("k_cache", k_cache), ("v_cache", v_cache)):
        expect(_is_dense(tensor), OP, name, "a contiguous tensor", f"strides {list(tensor.stride())}")
    expect_same(OP, "v_cache", "number of places", v_cache.shape[2], k_cache.shape[2])
    reason = refuse(problem_of(q, k, rotary_dim))
    if reason is not None:
        raise KernelArgumentError(f"{OP}: {reason}. Rotate the heads in PyTorch, or leave out etcuda::{OP}.")
    for name, tensor in (("cos", cos), ("sin", sin)):
        _check_table(name, tensor, q, rotary_dim)
    expect(cos.shape[-1] == sin.shape[-1], OP, "sin", f"as many columns as cos, {cos.shape[-1]}", sin.shape[-1])
    expect(positions.dtype in _INTEGERS, OP, "positions", "int32 or int64", positions.dtype)
    expect(positions.dim() == 1, OP, "positions", "one dimension [L]", list(positions.shape))
    expect_same(OP, "positions", "length", positions.shape[0], 1 if consecutive else q.shape[2])
    expect(eps >= 0 and math.isfinite(eps), OP, "eps", "a positive finite number, or 0 for no norm", eps)
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight is not None:
            expect(eps > 0, OP, name, "None without a norm", "a weight and eps = 0", "Give the norm's eps.")
            expect(weight.dtype in DTYPES, OP, name, _DTYPE_NAMES, weight.dtype)
            shape = [q.shape[3]]
            expect(list(weight.shape) == shape, OP, name, f"shape {shape}", list(weight.shape))


def check_config(heads: int, num_warps: int) -> None:
    """Checks a configuration.

    Raises:
        KernelArgumentError: naming the argument, what was expected and what it is.
    """
    expect(heads > 0 and heads & (heads - 1) == 0, OP, "heads", "a power of two", heads)
    expect(num_warps in (1, 2, 4, 8, 16, 32), OP, "num_warps", "1, 2, 4, 8, 16 or 32", num_warps)


def _check_table(name: str, table: Tensor, q: Tensor, rotary_dim: int) -> None:
    expect(table.dtype in DTYPES, OP, name, _DTYPE_NAMES, table.dtype)
    expect(table.dim() in (2, 3), OP, name, "[L, columns] or [batch, L, columns]", list(table.shape))
    widths = (rotary_dim, rotary_dim // 2)
    expect(table.shape[-1] in widths, OP, name, f"{widths[0]} or {widths[1]} columns", list(table.shape))
    for size, wanted, what in zip(
        table.shape[-2::-1], (q.shape[2], q.shape[0]), ("length", "batch size"), strict=False
    ):
        if not statically_known_true(size == 1):
            expect_same(OP, name, what, size, wanted)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the tensor is contiguous, its batch size put aside, which may be symbolic."""
    stride = 1
    for size, step in zip(tensor.shape[:0:-1], tensor.stride()[:0:-1], strict=True):
        if not statically_known_true(size == 1) and not statically_known_true(step == stride):
            return False
        stride = stride * size
    return True

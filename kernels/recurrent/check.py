"""What the operators take, checked alike in eager mode, on fake tensors and at export."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from etcuda.errors import KernelArgumentError
from etcuda.kernels.common.check import expect, expect_same
from etcuda.kernels.recurrent.problem import (
    MAX_SLOTS,
    ConvProblem,
    DeltaProblem,
    ScanProblem,
    refuse_conv,
    refuse_heads,
)
from etcuda.kernels.recurrent.reference.conv import ACTIVATIONS

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_NAMES = "bfloat16, float16 or float32"


def check_shape(op: str, name: str, tensor: Tensor, dims: str, sizes: Sequence[int | torch.SymInt | None]) -> None:
    """Checks the sizes of a tensor; ``None`` for any."""
    expect(tensor.dim() == len(sizes), op, name, f"{len(sizes)} dimensions {dims}", list(tensor.shape))
    for size, wanted in zip(tensor.shape, sizes, strict=True):
        if wanted is not None:
            expect_same(op, f"{name} {dims}", "size", size, wanted)  # type: ignore[arg-type]


def _numbers(op: str, **tensors: Tensor | None) -> None:
    first: Tensor | None = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        first = tensor if first is None else first
        expect(tensor.dtype in DTYPES, op, name, _NAMES, tensor.dtype)
        expect(tensor.device == first.device, op, name, f"a tensor on {first.device}", tensor.device)


def check_sizes(op: str, state: Tensor, dims: str, sizes: Sequence[int | torch.SymInt | None]) -> None:
    """Checks the sizes of a state, of which a ring has several behind the batch."""
    if state.dim() == len(sizes) + 1:
        expect(1 <= state.shape[1] <= MAX_SLOTS, op, "state", f"1 to {MAX_SLOTS} slots", state.shape[1])
        check_shape(op, "state", state, dims.replace(",", ", slots,", 1), [sizes[0], None, *sizes[1:]])
    else:
        check_shape(op, "state", state, dims, sizes)


def check_state(op: str, state: Tensor, positions: Tensor, length: int | torch.SymInt) -> None:
    """Checks the memory of a state, and positions."""
    expect(state.is_contiguous(), op, "state", "a contiguous tensor", f"strides {list(state.stride())}")
    whole = (torch.int32, torch.int64)
    expect(positions.dtype in whole, op, "positions", "int32 or int64", positions.dtype)
    expect(positions.device == state.device, op, "positions", f"a tensor on {state.device}", positions.device)
    check_shape(op, "positions", positions, "[L]", [length])


def _fixed(op: str, name: str, tensor: Tensor, skipped: int = 2) -> None:
    """Sizes behind batch and tokens are numbers: kernels are compiled for them."""
    fixed = all(isinstance(size, int) for size in tensor.shape[skipped:])
    expect(fixed, op, name, "fixed sizes behind batch and length", list(tensor.shape))


def refused(op: str, reason: str | None) -> None:
    """Raises what a problem is refused for."""
    if reason is not None:
        raise KernelArgumentError(f"{op}: {reason}. Compute it with operators of PyTorch.")


def check_conv(
    x: Tensor, state: Tensor, positions: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> None:
    """Checks a call of ``causal_conv``.

    Raises:
        KernelArgumentError: naming the argument, what was expected and what it is.
    """
    op = "causal_conv"
    expect(activation in ACTIVATIONS, op, "activation", f"one of {', '.join(ACTIVATIONS)}", repr(activation))
    _numbers(op, x=x, state=state, weight=weight, bias=bias)
    check_shape(op, "x", x, "[batch, L, channels]", [None, None, None])
    _fixed(op, "x", x)
    channels = x.shape[2]
    check_shape(op, "weight", weight, "[channels, width]", [channels, None])
    check_shape(op, "state", state, "[batch, rows, channels]", [x.shape[0], None, channels])
    rows, width = state.shape[1], weight.shape[1]
    expect(rows >= width, op, "state", f"a ring of the filter's width of {width} rows or more", rows)
    if bias is not None:
        check_shape(op, "bias", bias, "[channels]", [channels])
    check_state(op, state, positions, x.shape[1])
    refused(op, refuse_conv(ConvProblem(1, 1, int(channels), int(weight.shape[1]))))


def check_delta(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, positions: Tensor) -> None:
    """Checks a call of ``gated_delta_rule``.

    Raises:
        KernelArgumentError: naming the argument, what was expected and what it is.
    """
    op = "gated_delta_rule"
    _numbers(op, q=q, k=k, v=v, g=g, beta=beta, state=state)
    check_shape(op, "q", q, "[batch, L, num_k_heads, key_dim]", [None] * 4)
    check_shape(op, "v", v, "[batch, L, num_v_heads, value_dim]", [q.shape[0], q.shape[1], None, None])
    check_shape(op, "k", k, "[batch, L, num_k_heads, key_dim]", list(q.shape))
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _fixed(op, name, tensor)
        expect(tensor.dtype == q.dtype, op, name, f"the dtype of q, {q.dtype}", tensor.dtype)
    for name, tensor in (("g", g), ("beta", beta)):
        check_shape(op, name, tensor, "[batch, L, num_v_heads]", list(v.shape[:3]))
    heads = (q.shape[2], v.shape[2])
    expect(heads[0] > 0 and heads[1] % heads[0] == 0, op, "v", f"heads a multiple of the {heads[0]} of k", heads[1])
    sizes = [q.shape[0], v.shape[2], q.shape[3], v.shape[3]]
    check_sizes(op, state, "[batch, num_v_heads, key_dim, value_dim]", sizes)
    check_state(op, state, positions, q.shape[1])
    refused(op, refuse_heads(DeltaProblem(1, 1, int(heads[0]), int(heads[1]), int(q.shape[3]), int(v.shape[3]))))


def check_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, dt_bias: Tensor | None, state: Tensor,
    positions: Tensor, dt_min: float, dt_max: float,
) -> None:  # fmt: skip
    """Checks a call of ``selective_scan``.

    Raises:
        KernelArgumentError: naming the argument, what was expected and what it is.
    """
    op = "selective_scan"
    _numbers(op, x=x, dt=dt, a=a, b=b, c=c, d=d, dt_bias=dt_bias, state=state)
    check_shape(op, "x", x, "[batch, L, num_heads, head_dim]", [None] * 4)
    batch, length, heads, head_dim = x.shape
    check_shape(op, "b", b, "[batch, L, groups, state_dim]", [batch, length, None, None])
    check_shape(op, "c", c, "[batch, L, groups, state_dim]", list(b.shape))
    for name, tensor in (("x", x), ("b", b), ("c", c)):
        _fixed(op, name, tensor)
        expect(tensor.dtype == x.dtype, op, name, f"the dtype of x, {x.dtype}", tensor.dtype)
    check_shape(op, "dt", dt, "[batch, L, num_heads]", [batch, length, heads])
    for name, given in (("a", a), ("d", d), ("dt_bias", dt_bias)):
        if given is not None:
            check_shape(op, name, given, "[num_heads]", [heads])
    groups = b.shape[2]
    expect(groups > 0 and heads % groups == 0, op, "b", f"groups that divide the {heads} heads of x", groups)
    expect(dt_min <= dt_max, op, "dt_min", f"at most dt_max, {dt_max}", dt_min)
    check_sizes(op, state, "[batch, num_heads, head_dim, state_dim]", [batch, heads, head_dim, b.shape[3]])
    check_state(op, state, positions, length)
    refused(op, refuse_heads(ScanProblem(1, 1, int(heads), int(groups), int(b.shape[3]), int(head_dim))))

"""What the attention operators take, checked alike in eager mode, on fake tensors and at export."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.kernels.attention.problem import CAUSAL_NAMES, DTYPES, FULL, MAX_HEAD_DIM, POSITIONS
from etcuda.kernels.common.check import expect, expect_same

_INTEGERS = (torch.int32, torch.int64)


def check_arguments(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    kv_len: Tensor | None,
    positions: Tensor | None,
    scale: float,
    causal: int,
    window: int,
    softcap: float,
    max_query: int | None,
    sinks: Tensor | None = None,
    ring: bool = False,
) -> None:
    """Checks everything but the configuration.

    Raises:
        KernelArgumentError: naming the argument, what was expected and what it is.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        expect(tensor.dim() == 4, op, name, "4 dimensions [batch, heads, length, head_dim]", tuple(tensor.shape))
        expect(tensor.dtype in DTYPES, op, name, "bfloat16 or float16", tensor.dtype, "Convert it, or use the "
                "reference.")  # fmt: skip
        expect(tensor.dtype == q.dtype, op, name, f"the dtype of q, {q.dtype}", tensor.dtype)
    optional = (("mask", mask), ("kv_len", kv_len), ("positions", positions), ("sinks", sinks))
    for name, other in (("k", k), ("v", v), *optional):
        if other is not None:
            expect(other.device == q.device, op, name, f"the device of q, {q.device}", other.device)
    expect_same(op, "k", "batch", k.shape[0], q.shape[0])
    expect_same(op, "k", "head_dim", k.shape[3], q.shape[3])
    for index, name in enumerate(("batch", "heads", "length", "head_dim")):
        expect_same(op, "v", name, v.shape[index], k.shape[index])
    head_dim, heads, kv_heads = q.shape[3], q.shape[1], k.shape[1]
    for name, size in (("head_dim", head_dim), ("heads of q", heads), ("heads of k", kv_heads)):
        expect(isinstance(size, int), op, name, "a fixed number", size, "Export with it fixed.")
    expect(1 <= head_dim <= MAX_HEAD_DIM, op, "head_dim", f"1 to {MAX_HEAD_DIM}", head_dim)
    groups = kv_heads > 0 and heads % kv_heads == 0
    expect(groups, op, "heads", f"heads of q to be a multiple of those of k, {kv_heads}", heads)
    if max_query is not None:
        too_long = statically_known_true(q.shape[2] > max_query)
        expect(not too_long, op, "L_q", f"at most {max_query} query rows", q.shape[2], "Use attention_tiled.")
    if mask is not None:
        _check_mask(op, mask, (q.shape[0], heads, q.shape[2], k.shape[2]))
    if kv_len is not None:
        _check_lengths(op, kv_len, q.shape[0], k.shape[2])
    _check_positions(op, positions, causal, q.shape[0], q.shape[2])
    expect(window >= 0, op, "window", "0 for none, or a number of keys", window)
    causal_window = window == 0 or causal != FULL
    expect(causal_window, op, "window", "0 unless causal", window, "Pass causal, or the window as a mask.")
    expect(scale > 0 and math.isfinite(scale), op, "scale", "a positive finite number", scale)
    expect(softcap >= 0 and math.isfinite(softcap), op, "softcap", "0 for none, or a positive number", softcap)
    check_sinks(op, sinks, heads)
    if ring:
        check_ring(op, q.shape[2], k.shape[2], mask, kv_len, causal, window)


def check_sinks(op: str, sinks: Tensor | None, heads: int) -> None:
    """Checks that sinks are a number for each head.

    Raises:
        KernelArgumentError: naming what was expected and what it is.
    """
    if sinks is None:
        return
    expect(sinks.dtype.is_floating_point, op, "sinks", "a floating dtype", sinks.dtype)
    expect(sinks.dim() == 1, op, "sinks", "one dimension [num_heads]", tuple(sinks.shape))
    expect_same(op, "sinks", "size", sinks.shape[0], heads)


def check_ring(
    op: str,
    l_q: int,
    l_kv: int,
    mask: Tensor | None,
    kv_len: Tensor | None,
    causal: int,
    window: int,
) -> None:
    """Checks that positions and a window alone say which slots of a ring are read.

    Raises:
        KernelArgumentError: naming the argument, what was expected and what it is.
    """
    for name, tensor in (("mask", mask), ("kv_len", kv_len)):
        got = "None" if tensor is None else "a tensor"
        expect(tensor is None, op, name, "None for a ring, whose positions say which keys are there", got)
    positions = f"{POSITIONS} ({CAUSAL_NAMES[POSITIONS]}) for a ring"
    expect(causal == POSITIONS, op, "causal", positions, causal)
    expect(window > 0, op, "window", "a number of keys for a ring", window, "Give a window, or keep all keys in order.")
    # Older keys than that are overwritten by those of the call's last rows.
    too_wide = statically_known_true(window + l_q - 1 > l_kv)
    fitting = f"at most L_kv - L_q + 1 keys of a ring of {l_kv} with {l_q} rows"
    expect(not too_wide, op, "window", fitting, window, "Keep more keys, or give fewer rows.")


def broadcast_strides(tensor: Tensor, rank: int) -> list[int]:
    """Strides over ``rank`` dimensions with 0 where the tensor has size one or no dimension."""
    strides = [0] * (rank - tensor.dim())
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        strides.append(0 if statically_known_true(size == 1) else stride)
    return strides


def _check_mask(op: str, mask: Tensor, shape: tuple[int, ...]) -> None:
    mask_dtypes = (torch.bool, torch.float32, *DTYPES)
    expect(mask.dtype in mask_dtypes, op, "mask", "bool, float32, bfloat16 or float16", mask.dtype)
    expect(mask.dim() <= 4, op, "mask", "at most 4 dimensions", tuple(mask.shape))
    for size, wanted in zip(reversed(mask.shape), reversed(shape), strict=False):
        if not statically_known_true(size == 1):
            expect_same(op, "mask", f"shape broadcastable to {shape}; a dimension", size, wanted)


def _check_lengths(op: str, kv_len: Tensor, batch: int, l_kv: int) -> None:
    expect(kv_len.dtype in _INTEGERS, op, "kv_len", "int32 or int64", kv_len.dtype)
    expect(kv_len.dim() == 1, op, "kv_len", "one dimension [batch]", tuple(kv_len.shape))
    expect_same(op, "kv_len", "size", kv_len.shape[0], batch)
    if _has_values(kv_len):
        greatest = int(kv_len.max())
        expect(greatest <= l_kv, op, "kv_len", f"at most L_kv = {l_kv}", greatest)


def _has_values(tensor: Tensor) -> bool:
    # A look at a GPU tensor would wait for the device; the kernel clamps lengths itself.
    plain = type(tensor) is Tensor and tensor.device.type == "cpu"
    return plain and tensor.numel() > 0


def _check_positions(op: str, positions: Tensor | None, causal: int, batch: int, l_q: int) -> None:
    known = ", ".join(f"{number} ({name})" for number, name in CAUSAL_NAMES.items())
    expect(causal in CAUSAL_NAMES, op, "causal", f"one of {known}", causal)
    agree = (positions is not None) == (causal == POSITIONS)
    given = "None" if positions is None else "a tensor"
    expect(agree, op, "positions", f"a tensor exactly if causal is {POSITIONS}", f"{given} with causal={causal}")
    if positions is None:
        return
    expect(positions.dtype in _INTEGERS, op, "positions", "int32 or int64", positions.dtype)
    expect(positions.dim() in (1, 2), op, "positions", "[L_q] or [batch, L_q]", tuple(positions.shape))
    expect_same(op, "positions", "last dimension", positions.shape[-1], l_q)
    if positions.dim() == 2 and not statically_known_true(positions.shape[0] == 1):
        expect_same(op, "positions", "first dimension", positions.shape[0], batch)

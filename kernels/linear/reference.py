"""Products and look-ups in plain PyTorch, computed in fp32: what the kernels are compared with, what eager mode runs on
the CPU, and the lowering where no kernel serves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from etcuda.kernels.activations.reference import activation_rows, gate_reference
from etcuda.kernels.formats.base import GroupFormat

_CHUNK = 1 << 26  # Weights that are dequantised at a time: 256 MiB in fp32.

Stored = tuple[Tensor | None, ...]


def linear_reference(
    format_type: type[GroupFormat],
    x: Tensor,
    qdata: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    scale_step: Tensor | None,
    zero_step: Tensor | None,
    bias: Tensor | None,
    group_size: int,
    activation_dtype: str,
) -> Tensor:
    """x @ weight.T + bias with fp32 products and sums, rounded once to the dtype of ``x``.

    Args:
        format_type: the format of the weight, which ``functools.partial`` fixes: what is left is called like the
            operator.
        x: [..., K] floating.
        qdata: the integers of a weight [N, K]: uint8 [N, K / 2] for int4, int8 [N, K] for int8.
        scale: float16, float32 or uint8 [N, G].
        zero: ``None``, uint8, or the dtype of ``scale`` [N, G].
        scale_step: ``None`` or float16 [N, K / 256].
        zero_step: ``None`` or float16 [N, K / 256].
        bias: ``None`` or [N] floating.
        group_size: K / G.
        activation_dtype: "exact", or "int8" for activations quantized as ``quantize_activation_reference`` does.

    Returns:
        [..., N] in the dtype of ``x``.
    """
    weight_format = format_type.of(group_size, scale, zero, scale_step, zero_step)
    stored = (qdata, scale, zero, scale_step, zero_step)
    return _linear_by_rows(x, weight_format.dequantize, stored, bias, activation_dtype)


def matvec_reference(
    format_type: type[GroupFormat],
    x: Tensor,
    qdata: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    scale_step: Tensor | None,
    zero_step: Tensor | None,
    bias: Tensor | None,
    group_size: int,
    activation: str = "none",
) -> Tensor:
    """``linear_reference`` with activation_dtype "int8"; with an activation [..., N / 2], that of the first half of the
    results times the other half."""
    y = linear_reference(format_type, x, qdata, scale, zero, scale_step, zero_step, bias, group_size, "int8")
    return y if activation == "none" else gate_reference(y, None, activation)


def embedding_reference(
    format_type: type[GroupFormat],
    indices: Tensor,
    qdata: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    scale_step: Tensor | None,
    zero_step: Tensor | None,
    group_size: int,
) -> Tensor:
    """Rows of the weight, float32 [*indices.shape, K]; ``indices`` integers from 0 to N - 1."""
    weight_format = format_type.of(group_size, scale, zero, scale_step, zero_step)
    return _embed_rows(indices, weight_format.dequantize, (qdata, scale, zero, scale_step, zero_step))


def _linear_by_rows(
    x: Tensor, dequantize: Callable[..., Tensor], stored: Stored, bias: Tensor | None, activation_dtype: str
) -> Tensor:
    """x @ dequantize(*stored).T + bias in fp32, some rows of the weight at a time if it is large."""
    rows = activation_rows(x, activation_dtype)
    n, step = _size(stored), max(1, _CHUNK // x.shape[-1])
    pieces = []
    for start in range(0, n, step):
        chosen = [None if each is None else each[start : start + step] for each in stored] if n > step else stored
        pieces.append(rows @ dequantize(*chosen).t())
    out = torch.cat(pieces, dim=-1) if len(pieces) > 1 else pieces[0]
    if bias is not None:
        out = out + bias.to(torch.float32)
    return out.to(x.dtype).reshape(*x.shape[:-1], n)


def _embed_rows(indices: Tensor, dequantize: Callable[..., Tensor], stored: Stored) -> Tensor:
    """Rows ``indices`` of the weight, float32 [*indices.shape, K]."""
    flat = indices.reshape(-1)
    rows = dequantize(*(None if each is None else each.index_select(0, flat) for each in stored))
    return rows.reshape(*indices.shape, rows.shape[-1])


def _size(stored: Stored) -> int:
    qdata = stored[0]
    assert qdata is not None
    return qdata.shape[0]

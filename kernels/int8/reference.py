"""int8 products and look-ups in plain PyTorch, computed in fp32; see ``etcuda.kernels.int4.reference``."""

from __future__ import annotations

from torch import Tensor

from etcuda.kernels.int8.layout import Int8Format
from etcuda.kernels.quantized_reference import embed_rows, linear_by_rows


def int8_linear_reference(
    x: Tensor,
    qdata: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    scale_step: Tensor | None,
    zero_step: Tensor | None,
    bias: Tensor | None,
    group_size: int,
    activation: str,
) -> Tensor:
    """x @ weight.T + bias with fp32 products and sums, rounded once to the dtype of ``x``.

    Args:
        x: [..., K] floating.
        qdata: int8 [N, K].
        scale: float16, float32 or uint8 [N, G].
        zero: ``None``, uint8, or the dtype of ``scale`` [N, G].
        scale_step: ``None`` or float16 [N, K / 256].
        zero_step: ``None`` or float16 [N, K / 256].
        bias: ``None`` or [N] floating.
        group_size: K / G.
        activation: "exact", or "int8" for activations rounded as ``quantize_activation_reference`` does.

    Returns:
        [..., N] in the dtype of ``x``.
    """
    form = Int8Format.of(group_size, scale, zero, scale_step, zero_step)
    return linear_by_rows(x, form.dequantize, (qdata, scale, zero, scale_step, zero_step), bias, activation)


def int8_embedding_reference(
    indices: Tensor,
    qdata: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    scale_step: Tensor | None,
    zero_step: Tensor | None,
    group_size: int,
) -> Tensor:
    """Rows of the weight, float32 [*indices.shape, K]; ``indices`` integers from 0 to N - 1."""
    form = Int8Format.of(group_size, scale, zero, scale_step, zero_step)
    return embed_rows(indices, form.dequantize, (qdata, scale, zero, scale_step, zero_step))

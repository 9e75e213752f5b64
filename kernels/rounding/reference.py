"""RMSNorm and gated activations with rounding, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from etcuda.kernels.quantized_reference import order_activation_reference, quantize_activation_reference

Rounded = tuple[Tensor, Tensor, Tensor]


def rms_norm_reference(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, eps: float, weight_offset: float, cast_first: bool
) -> tuple[Tensor, Tensor]:
    """RMSNorm (Zhang and Sennrich, 2019) in fp32, with the roundings to the dtype of ``x`` that README.md gives.

    Returns:
        h = x + residual, and the norm of h; both in the shape and dtype of ``x``.
    """
    h = x if residual is None else x + residual
    wide = h.to(torch.float32)
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if cast_first:
        normed = normed.to(x.dtype).to(torch.float32)
    if weight is not None:
        normed = normed * (weight.to(torch.float32) + weight_offset)
    return h, normed.to(x.dtype)


def rms_norm_quantize_reference(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, eps: float, weight_offset: float, cast_first: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h and its norm as of ``rms_norm_reference``, and what ``quantize_activation_reference`` makes of the norm."""
    h, y = rms_norm_reference(x, residual, weight, eps, weight_offset, cast_first)
    return h, y, *quantize_activation_reference(y)


def gate_reference(gate: Tensor, up: Tensor | None, activation: str) -> Tensor:
    """activation(gate) * up, the activation rounded to the dtype of ``gate``; without ``up``, ``gate`` holds both."""
    if up is None:
        gate, up = gate.chunk(2, dim=-1)
    if activation == "silu":
        return F.silu(gate) * up
    return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none") * up


def gate_quantize_reference(gate: Tensor, up: Tensor | None, activation: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The product of ``gate_reference``, and what ``quantize_activation_reference`` makes of it."""
    y = gate_reference(gate, up, activation)
    return y, *quantize_activation_reference(y)


def gate_order_reference(
    gate: Tensor, up: Tensor | None, gate_activation: str, activation: str, block_m: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``order_activation_reference`` makes of the product of ``gate_reference``, tiled for int4."""
    return order_activation_reference(gate_reference(gate, up, gate_activation), 4, activation, block_m, 1)

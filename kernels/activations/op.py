"""Operators that compute activations and quantize them to int8 as ``etcuda::quantize_activation`` does.

On a CPU they compute the reference, on a GPU the kernel. The trailing integers are the configuration, so that a graph
fixes it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import triton_op

from etcuda.kernels.activations import launch
from etcuda.kernels.activations.check import check_config, check_gate, check_norm
from etcuda.kernels.activations.choose.configs import ActivationConfig
from etcuda.kernels.activations.reference import gate_quantize_reference, rms_norm_quantize_reference
from etcuda.kernels.common.memory import needs_reference


@triton_op("etcuda::rms_norm_quantize", mutates_args=())
def rms_norm_quantize(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    eps: float,
    weight_offset: float,
    cast_first: bool,
    keep_h: bool,
    keep_y: bool,
    blocks: int,
    num_warps: int,
    pdl: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h = x + residual, y = the RMSNorm of h, and y quantized to int8 per block of 32.

    Args:
        x: [..., K] bfloat16, float16 or float32, K a multiple of 32; M is the product of the leading sizes.
        residual: ``None``, or a tensor of the shape and dtype of ``x``.
        weight: ``None``, or [K] bfloat16, float16 or float32.
        eps: added to the mean of the squares.
        weight_offset: added to the weight, in fp32.
        cast_first: whether the norm is rounded to the dtype of ``x`` before it is multiplied by the weight, and then
            again, as Llama and Qwen have it; else once, at the end, as Gemma and ``torch.nn.RMSNorm`` have it.
        keep_h: whether h is wanted.
        keep_y: whether y is wanted.
        blocks: this and ``num_warps`` as of ``ActivationConfig``.
        pdl: 1 to launch the kernel while the one in front of it runs, which must not store the weight.

    Returns:
        h and y in the shape and dtype of ``x``, or [0] where they are not wanted; of y, q int8 [M, K], scale float32
        [M, K / 32] and sum float32 [M, K / 32] as of ``quantize_activation``.

    Raises:
        KernelArgumentError: an argument is not one that the operator takes.
    """
    check_norm("rms_norm_quantize", x, residual, weight, eps, blocks, num_warps)
    if needs_reference(x):
        h, y, q, scale, total = rms_norm_quantize_reference(
            x, residual, weight, eps, weight_offset, cast_first, keep_h, keep_y
        )
        return _of_its_own(h), _of_its_own(y), q, scale, total
    config = ActivationConfig(blocks, num_warps)
    return launch.rms_norm_quantize(
        x, residual, weight, eps, weight_offset, cast_first, keep_h, keep_y, config, pdl
    )  # fmt: skip


@triton_op("etcuda::gate_quantize", mutates_args=())
def gate_quantize(
    gate: Tensor,
    up: Tensor | None,
    activation: str,
    keep_y: bool,
    blocks: int,
    num_warps: int,
    pdl: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y = activation(gate) * up, the activation rounded to the dtype first, and y quantized to int8 per block of 32.

    Args:
        gate: [..., K] bfloat16, float16 or float32, K a multiple of 32; or gate and up side by side [..., 2 K].
        up: a tensor of the shape and dtype of ``gate``, or ``None`` if ``gate`` holds both.
        activation: "silu", "gelu_tanh" or "gelu_erf".
        keep_y: whether y is wanted.
        blocks: this and ``num_warps`` as of ``ActivationConfig``.
        pdl: 1 to launch the kernel while the one in front of it runs.

    Returns:
        y [..., K] in the dtype of ``gate``, or [0] where it is not wanted; of y, q int8 [M, K], scale float32
        [M, K / 32] and sum float32 [M, K / 32] as of ``quantize_activation``.

    Raises:
        KernelArgumentError: an argument is not one that the operator takes.
    """
    check_gate("gate_quantize", gate, up, activation)
    check_config("gate_quantize", blocks, num_warps)
    if needs_reference(gate):
        y, q, scale, total = gate_quantize_reference(gate, up, activation, keep_y)
        return _of_its_own(y), q, scale, total
    return launch.gate_quantize(gate, up, activation, keep_y, ActivationConfig(blocks, num_warps), pdl)


def fake_rms_norm_quantize(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, eps: float, weight_offset: float, cast_first: bool,
    keep_h: bool, keep_y: bool, blocks: int, num_warps: int, pdl: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Checks the arguments; returns fake results."""
    k = check_norm("rms_norm_quantize", x, residual, weight, eps, blocks, num_warps)
    h, y = (launch.new_kept(x, x.shape, keep) for keep in (keep_h, keep_y))
    return h, y, *launch.new_quantized(x, x.numel() // k, k)


def fake_gate_quantize(
    gate: Tensor, up: Tensor | None, activation: str, keep_y: bool, blocks: int, num_warps: int, pdl: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Checks the arguments; returns fake results."""
    k = check_gate("gate_quantize", gate, up, activation)
    check_config("gate_quantize", blocks, num_warps)
    rows = gate.numel() // gate.shape[-1]
    return launch.new_kept(gate, (*gate.shape[:-1], k), keep_y), *launch.new_quantized(gate, rows, k)


def _of_its_own(tensor: Tensor) -> Tensor:
    """Dense, and in no memory of another tensor, as results of an operator must be."""
    return tensor.clone(memory_format=torch.contiguous_format)


rms_norm_quantize.register_fake(fake_rms_norm_quantize)
gate_quantize.register_fake(fake_gate_quantize)

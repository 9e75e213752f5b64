"""Dynamic quantisation of activations as an operator."""

from __future__ import annotations

from torch import Tensor
from torch.library import triton_op

from etcuda.kernels.activations.check import check_activation
from etcuda.kernels.activations.launch import new_quantized, quantize
from etcuda.kernels.activations.reference import quantize_activation_reference
from etcuda.kernels.common.memory import dense_rows, needs_reference


@triton_op("etcuda::quantize_activation", mutates_args=())
def quantize_activation(x: Tensor, pdl: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Quantizes activations to int8, symmetric, per block of 32, as ``quantize_activation_reference`` says.

    Args:
        x: [..., K] bfloat16, float16 or float32, K a multiple of 32.
        pdl: 1 to launch the kernel while the one in front of it runs.

    Returns:
        q int8 [M, K]; scale float32 [M, K / 32]; sum float32 [M, K / 32], scale times the sum of q over the block.

    Raises:
        KernelArgumentError: another dtype or K.
    """
    check_activation("quantize_activation", x)
    if needs_reference(x):
        return quantize_activation_reference(x)
    return quantize(dense_rows(x), pdl)


def fake_quantize_activation(x: Tensor, pdl: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Checks the arguments; returns fake results."""
    k = check_activation("quantize_activation", x)
    return new_quantized(x, x.numel() // k, k)


quantize_activation.register_fake(fake_quantize_activation)

"""Reordering of activations as operators."""

from __future__ import annotations

from torch import Tensor
from torch.library import triton_op

from etcuda.kernels.activations import reorder_launch
from etcuda.kernels.activations.check import check_gate_reorder, check_reorder
from etcuda.kernels.activations.launch import rows_of
from etcuda.kernels.activations.reference import gate_reorder_reference, reorder_activation_reference
from etcuda.kernels.common.memory import dense_rows, needs_reference, require_device


@triton_op("etcuda::reorder_activation", mutates_args=())
def reorder_activation(
    x: Tensor, bits: int, activation_dtype: str, block_m: int, tiled: int, pdl: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Activations as tensor-core products of weights of ``bits`` bits load them, once for all products of one input.

    Args:
        x: [..., K] bfloat16, float16 or float32, K a multiple of 32.
        bits: 4 or 8.
        activation_dtype: "int8" for activations quantized per block of 32, or "exact".
        block_m: the greatest of the products' own: a power of two, so that its rows serve them all.
        tiled: 1 for products by the kernel in gemm.cu, for which ``bits`` is 4 and K a multiple of 256 below
            65536, 0 for Triton's.
        pdl: 1 to launch the kernel while the one in front of it runs.

    Returns:
        What ``reorder_activation_reference`` does, but for rows beyond M, which no thread stores. Each product leaves
        the semaphores zero, so those of one input must run one after another.

    Raises:
        KernelArgumentError: an argument is not one that the operator takes.
    """
    check_reorder("reorder_activation", x, bits, activation_dtype, block_m, tiled)
    # CUDA C++ has no interpreter.
    if needs_reference(x) or (tiled and type(x) is Tensor and x.device.type == "cpu"):
        return reorder_activation_reference(x, bits, activation_dtype, block_m, tiled)
    return reorder_launch.reorder(bits, dense_rows(x), activation_dtype, block_m, tiled, pdl)


@triton_op("etcuda::gate_reorder", mutates_args=())
def gate_reorder(
    gate: Tensor, up: Tensor | None, gate_activation: str, activation_dtype: str, block_m: int, pdl: int
) -> tuple[Tensor, Tensor, Tensor]:
    """y = gate_activation(gate) * up, as of ``gate_quantize``, reordered as int4 products in gemm.cu load it.

    Args:
        gate: [..., K] bfloat16, float16 or float32, K a multiple of 256 below 65536; or gate and up side by side
            [..., 2 K].
        up: a tensor of the shape and dtype of ``gate``, or ``None`` if ``gate`` holds both.
        gate_activation: "silu", "gelu_tanh" or "gelu_erf".
        activation_dtype: "int8" or "exact"; this, ``block_m`` and ``pdl`` as of ``reorder_activation``.

    Returns:
        What ``reorder_activation(y, 4, activation_dtype, block_m, tiled=1)`` returns.

    Raises:
        KernelArgumentError: an argument is not one that the operator takes.
    """
    check_gate_reorder("gate_reorder", gate, up, gate_activation, activation_dtype, block_m)
    # CUDA C++ has no interpreter.
    if type(gate) is Tensor and gate.device.type == "cpu":
        return gate_reorder_reference(gate, up, gate_activation, activation_dtype, block_m)
    require_device("gate_reorder", gate, "gate")
    more = None if up is None else rows_of(up)
    return reorder_launch.gate_reorder(rows_of(gate), more, gate_activation, activation_dtype, block_m, pdl)


def fake_reorder_activation(
    x: Tensor, bits: int, activation_dtype: str, block_m: int, tiled: int, pdl: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Checks the arguments; returns fake results."""
    k = check_reorder("reorder_activation", x, bits, activation_dtype, block_m, tiled)
    return reorder_launch.new_reordered(x, x.numel() // k, k, activation_dtype, block_m, tiled)


def fake_gate_reorder(
    gate: Tensor, up: Tensor | None, gate_activation: str, activation_dtype: str, block_m: int, pdl: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Checks the arguments; returns fake results."""
    k = check_gate_reorder("gate_reorder", gate, up, gate_activation, activation_dtype, block_m)
    return reorder_launch.new_reordered(gate, gate.numel() // gate.shape[-1], k, activation_dtype, block_m, 1)


reorder_activation.register_fake(fake_reorder_activation)
gate_reorder.register_fake(fake_gate_reorder)

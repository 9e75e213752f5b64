"""Operators on int4 weights.

``etcuda::int4_linear`` and ``etcuda::int4_embedding`` say what is computed: an exported model holds one of them per
layer. On a CPU they compute the reference, on a GPU what was measured to be fastest. The others are the kernels.
Activations are rounded, or put in order, for weights of both widths by the two that are written out here.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import triton_op

from etcuda.kernels.int4 import launch
from etcuda.kernels.int4.check import check_activation, check_order
from etcuda.kernels.int4.define import define_embedding, define_linear
from etcuda.kernels.int4.define_kernels import (
    define_matmul,
    define_matmul_ordered,
    define_matvec,
    define_matvec_rounded,
)
from etcuda.kernels.int4.layout import Int4Format
from etcuda.kernels.int4.reference import int4_embedding_reference, int4_linear_reference
from etcuda.kernels.quantized_reference import order_activation_reference, quantize_activation_reference

int4_linear = define_linear(Int4Format, int4_linear_reference)
int4_embedding = define_embedding(Int4Format, int4_embedding_reference)
int4_matvec, fake_matvec = define_matvec(Int4Format)
int4_matvec_rounded, fake_matvec_rounded = define_matvec_rounded(Int4Format)
int4_matmul, fake_matmul = define_matmul(Int4Format)
int4_matmul_ordered, fake_matmul_ordered = define_matmul_ordered(Int4Format)


@triton_op("etcuda::quantize_activation", mutates_args=())
def quantize_activation(x: Tensor, overlap: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rounds activations to int8, symmetric, per block of 32, as ``quantize_activation_reference`` says.

    Args:
        x: [..., K] bfloat16, float16 or float32, K a multiple of 32.
        overlap: 1 to launch the kernel while the one in front of it runs.

    Returns:
        q int8 [M, K]; scale float32 [M, K / 32]; sum float32 [M, K / 32], scale times the sum of q over the block.

    Raises:
        KernelArgumentError: another dtype or K.
    """
    check_activation("quantize_activation", x)
    if type(x) is Tensor and x.device.type == "cpu":
        return quantize_activation_reference(x)
    return launch.quantize(launch.rows_of(x), overlap)


def fake_quantize(x: Tensor, overlap: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Checks the arguments; returns fake results."""
    k = check_activation("quantize_activation", x)
    rows = x.numel() // k
    scale, total = (x.new_empty((rows, k // 32), dtype=torch.float32) for _ in range(2))
    return x.new_empty((rows, k), dtype=torch.int8), scale, total


@triton_op("etcuda::order_activation", mutates_args=())
def order_activation(
    x: Tensor, bits: int, activation: str, block_m: int, tiled: int, overlap: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Activations as tensor-core products of weights of ``bits`` bits read them, for all that read the same ones.

    Args:
        x: [..., K] bfloat16, float16 or float32, K a multiple of 32.
        bits: 4 or 8.
        activation: "int8" for activations rounded per block of 32, or "exact".
        block_m: the greatest of the products' own: a power of two, so that its rows serve them all.
        tiled: 1 for products by the kernel in warpgroup.cu, for which ``bits`` is 4 and K a multiple of 256 below
            65536, 0 for Triton's.
        overlap: 1 to launch the kernel while the one in front of it runs.

    Returns:
        float16 [M rounded up to ``block_m``, at least that, K rounded up to 128] in the order of K that README.md
        gives, what rows beyond M hold left open, and with ``tiled`` in another order in memory and not rounded,
        bfloat16 if ``x`` is, ``activation`` "int8" and ``block_m`` below 64; float32 [M], the power of two that each
        row was divided by, or [S, M] where it is divided in ``stretches``; and int32 tickets, [1024] zeros with
        ``tiled``, by which programs of a product meet: each product leaves them zero, so those of one input must run
        one after another. [1] without a meaning else.

    Raises:
        KernelArgumentError: an argument is not one that the operator takes.
    """
    check_order("order_activation", x, bits, activation, block_m, tiled)
    if type(x) is Tensor and x.device.type == "cpu":
        return order_activation_reference(x, bits, activation, block_m, tiled)
    return launch.order(bits, launch.rows_of(x), activation, block_m, tiled, overlap)


def fake_order(
    x: Tensor, bits: int, activation: str, block_m: int, tiled: int, *config: int
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Checks the arguments; returns fake results."""
    k = check_order("order_activation", x, bits, activation, block_m, tiled)
    return launch.new_ordered(x, x.numel() // k, k, activation, block_m, tiled)


quantize_activation.register_fake(fake_quantize)
order_activation.register_fake(fake_order)

"""Operators on int8 weights.

``etcuda::int8_linear`` and ``etcuda::int8_embedding`` say what is computed: an exported model holds one of them per
layer. On a CPU they compute the reference, on a GPU what was measured to be fastest. The others are the kernels, whose
trailing integers are the configuration, so that a graph fixes it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op, triton_op

from etcuda.kernels.int4 import launch
from etcuda.kernels.int4.check import (
    check_embedding,
    check_linear,
    check_rounded,
    check_stored,
    check_tokens,
)
from etcuda.kernels.int4.select import run_linear
from etcuda.kernels.int8.layout import Int8Format
from etcuda.kernels.int8.reference import int8_embedding_reference, int8_linear_reference


@custom_op("etcuda::int8_linear", mutates_args=())
def int8_linear(
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
    """x @ weight.T + bias.

    Args:
        x: [..., K] bfloat16, float16 or float32; M, the product of the leading sizes, may be 0.
        qdata: int8 [N, K].
        scale: float16, float32 or uint8 [N, G].
        zero: ``None`` or the dtype of ``scale`` [N, G].
        scale_step: ``None`` or float16 [N, K / 256].
        zero_step: ``None`` or float16 [N, K / 256].
        bias: ``None`` or [N] floating.
        group_size: K / G.
        activation: "int8" for activations rounded per block of 32, or "exact".

    Returns:
        [..., N] in the dtype of ``x``.

    Raises:
        KernelArgumentError: x, bias or activation is not one that the operator takes.
        WeightFormatError: the stored tensors do not fit together.
    """
    stored = (qdata, scale, zero, scale_step, zero_step)
    form, n, k = check_linear("int8_linear", Int8Format, x, stored, bias, group_size, activation)
    if x.numel() == 0:
        return x.new_empty((*x.shape[:-1], n))
    if x.device.type == "cuda":
        return run_linear(8, form, n, k, x, stored, bias, activation)
    return int8_linear_reference(x, *stored, bias, group_size, activation)


@int8_linear.register_fake
def fake_linear(
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
    """Checks the arguments; returns a fake result."""
    stored = (qdata, scale, zero, scale_step, zero_step)
    _, n, _ = check_linear("int8_linear", Int8Format, x, stored, bias, group_size, activation)
    return x.new_empty((*x.shape[:-1], n))


@custom_op("etcuda::int8_embedding", mutates_args=())
def int8_embedding(
    indices: Tensor,
    qdata: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    scale_step: Tensor | None,
    zero_step: Tensor | None,
    group_size: int,
    dtype: torch.dtype,
) -> Tensor:
    """Rows of a weight.

    Args:
        indices: [...] int32 or int64, from 0 to N - 1.
        qdata: int8 [N, K]; the rest as of ``int8_linear``.
        dtype: of the result: bfloat16, float16 or float32.

    Returns:
        [..., K], rounded once.

    Raises:
        KernelArgumentError: indices or dtype is not one that the operator takes.
        WeightFormatError: the stored tensors do not fit together.
    """
    stored = (qdata, scale, zero, scale_step, zero_step)
    check_embedding("int8_embedding", Int8Format, indices, stored, group_size, dtype)
    return int8_embedding_reference(indices, *stored, group_size).to(dtype)


@int8_embedding.register_fake
def fake_embedding(
    indices: Tensor,
    qdata: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    scale_step: Tensor | None,
    zero_step: Tensor | None,
    group_size: int,
    dtype: torch.dtype,
) -> Tensor:
    """Checks the arguments; returns a fake result."""
    stored = (qdata, scale, zero, scale_step, zero_step)
    _, _, k = check_embedding("int8_embedding", Int8Format, indices, stored, group_size, dtype)
    return qdata.new_empty((*indices.shape, k), dtype=dtype)


@triton_op("etcuda::int8_matvec", mutates_args=())
def int8_matvec(
    x: Tensor,
    qdata: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    scale_step: Tensor | None,
    zero_step: Tensor | None,
    bias: Tensor | None,
    group_size: int,
    tokens: int,
    programs: int,
    block_n: int,
    blocks: int,
    num_warps: int,
    num_stages: int,
    overlap: int,
) -> Tensor:
    """``int8_linear`` with activation "int8" for at most ``tokens`` rows, which the product rounds itself.

    Args:
        x: [..., K] bfloat16 or float16; the stored tensors, ``bias`` and ``group_size`` as of ``int8_linear``.
        tokens: 1, 2, 4 or 8, at least M.
        programs: of the resident kernel, or 0 for the stepped one.
        block_n: weight rows of a tile.
        blocks: blocks of 32 of a tile.
        num_warps: warps of a program.
        num_stages: tiles in flight.
        overlap: 1 to launch the kernel while the one in front of it runs, which must not write the weight.

    Returns:
        [..., N] in the dtype of ``x``.

    Raises:
        KernelArgumentError: an argument is not one that the kernel takes, or is on no GPU.
        WeightFormatError: the stored tensors do not fit together.
    """
    stored = (qdata, scale, zero, scale_step, zero_step)
    form, n, _ = check_linear("int8_matvec", Int8Format, x, stored, bias, group_size, "int8")
    launch.require_device("int8_matvec", x)
    rows = launch.rows_of(x)
    check_tokens("int8_matvec", rows.shape[0], tokens)
    out = launch.matvec(8, form, rows, stored, bias, x.dtype, tokens, programs, block_n, blocks, num_warps, num_stages,
                        overlap)  # fmt: skip
    return out.reshape(*x.shape[:-1], n)


@triton_op("etcuda::int8_matvec_rounded", mutates_args=())
def int8_matvec_rounded(
    q: Tensor,
    q_scale: Tensor,
    q_sum: Tensor,
    qdata: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    scale_step: Tensor | None,
    zero_step: Tensor | None,
    bias: Tensor | None,
    group_size: int,
    dtype: torch.dtype,
    tokens: int,
    block_n: int,
    blocks: int,
    num_warps: int,
    num_stages: int,
    overlap: int,
) -> Tensor:
    """Like ``int8_matvec`` on what ``quantize_activation`` returned; [M, N] in ``dtype``."""
    stored = (qdata, scale, zero, scale_step, zero_step)
    form, _, k = check_stored("int8_matvec_rounded", Int8Format, stored, group_size)
    check_rounded("int8_matvec_rounded", q, q_scale, q_sum, k, dtype)
    launch.require_device("int8_matvec_rounded", q)
    check_tokens("int8_matvec_rounded", q.shape[0], tokens)
    x = (launch.rows_of(q), q_scale.contiguous(), q_sum.contiguous())
    return launch.matvec(8, form, x, stored, bias, dtype, tokens, 0, block_n, blocks, num_warps, num_stages, overlap)


@triton_op("etcuda::int8_matmul", mutates_args=())
def int8_matmul(
    x: Tensor,
    qdata: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    scale_step: Tensor | None,
    zero_step: Tensor | None,
    bias: Tensor | None,
    group_size: int,
    activation: str,
    block_n: int,
    block_m: int,
    blocks: int,
    num_warps: int,
    num_stages: int,
    programs: int,
    max_registers: int,
    overlap: int,
) -> Tensor:
    """``int8_linear`` on tensor cores, for any number of rows.

    Args:
        x: [..., K] bfloat16, float16 or float32; the rest up to ``activation`` as of ``int8_linear``.
        block_n: weight rows of a tile.
        block_m: activation rows of a tile.
        blocks: blocks of 32 along K of a step, 4 or 8.
        num_warps: warps of a program.
        num_stages: steps whose loads are in flight.
        programs: that share the tiles evenly, or 0 for one per tile.
        max_registers: that a thread may use; 0 for as many as the compiler takes.
        overlap: 1 to launch each kernel while the one in front of it runs.

    Returns:
        [..., N] in the dtype of ``x``.

    Raises:
        KernelArgumentError: an argument is not one that the kernel takes, or is on no GPU.
        WeightFormatError: the stored tensors do not fit together.
    """
    stored = (qdata, scale, zero, scale_step, zero_step)
    form, n, _ = check_linear("int8_matmul", Int8Format, x, stored, bias, group_size, activation)
    launch.require_device("int8_matmul", x)
    out = launch.matmul(8, form, launch.rows_of(x), stored, bias, activation, block_n, block_m, blocks, num_warps,
                        num_stages, programs, max_registers, overlap)  # fmt: skip
    return out.reshape(*x.shape[:-1], n)


def fake_matvec(
    x: Tensor, qdata: Tensor, scale: Tensor, zero: Tensor | None, scale_step: Tensor | None, zero_step: Tensor | None,
    bias: Tensor | None, group_size: int, tokens: int, *config: int,
) -> Tensor:  # fmt: skip
    """Checks the arguments; returns a fake result."""
    stored = (qdata, scale, zero, scale_step, zero_step)
    _, n, k = check_linear("int8_matvec", Int8Format, x, stored, bias, group_size, "int8")
    check_tokens("int8_matvec", x.numel() // k, tokens)
    return x.new_empty((*x.shape[:-1], n))


def fake_matvec_rounded(
    q: Tensor, q_scale: Tensor, q_sum: Tensor, qdata: Tensor, scale: Tensor, zero: Tensor | None,
    scale_step: Tensor | None, zero_step: Tensor | None, bias: Tensor | None, group_size: int, dtype: torch.dtype,
    tokens: int, *config: int,
) -> Tensor:  # fmt: skip
    """Checks the arguments; returns a fake result."""
    stored = (qdata, scale, zero, scale_step, zero_step)
    _, n, k = check_stored("int8_matvec_rounded", Int8Format, stored, group_size)
    check_rounded("int8_matvec_rounded", q, q_scale, q_sum, k, dtype)
    check_tokens("int8_matvec_rounded", q.shape[0], tokens)
    return q.new_empty((q.shape[0], n), dtype=dtype)


def fake_matmul(
    x: Tensor, qdata: Tensor, scale: Tensor, zero: Tensor | None, scale_step: Tensor | None, zero_step: Tensor | None,
    bias: Tensor | None, group_size: int, activation: str, *config: int,
) -> Tensor:  # fmt: skip
    """Checks the arguments; returns a fake result."""
    stored = (qdata, scale, zero, scale_step, zero_step)
    _, n, _ = check_linear("int8_matmul", Int8Format, x, stored, bias, group_size, activation)
    return x.new_empty((*x.shape[:-1], n))


int8_matvec.register_fake(fake_matvec)
int8_matvec_rounded.register_fake(fake_matvec_rounded)
int8_matmul.register_fake(fake_matmul)

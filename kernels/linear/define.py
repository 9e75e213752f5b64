"""What the operators on quantised weights are, defined alike for every format.

Operators are called after the format, ``etcuda::int4_linear``; docstrings here leave that out.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.library import custom_op

from etcuda.kernels.formats.registry import WeightFormat
from etcuda.kernels.linear.check import check_embedding, check_linear, check_stored
from etcuda.kernels.linear.reference import embedding_reference, linear_reference
from etcuda.kernels.linear.run import run_linear


def define_linear(record: WeightFormat) -> None:
    """Defines ``etcuda::<name>_linear``: the reference on a CPU, on a GPU what was measured to be fastest."""
    name = f"{record.name}_linear"
    reference = functools.partial(linear_reference, record.format_type)

    @custom_op(f"etcuda::{name}", mutates_args=())
    def linear(
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
        """x @ weight.T + bias.

        Args:
            x: [..., K] bfloat16, float16 or float32; M, the product of the leading sizes, may be 0.
            qdata: the integers of a weight [N, K]: uint8 [N, K / 2] for int4, int8 [N, K] for int8.
            scale: float16, float32 or uint8 [N, G].
            zero: ``None``, the dtype of ``scale``, or for int4 with a floating ``scale`` uint8 [N, G].
            scale_step: ``None`` or float16 [N, K / 256].
            zero_step: ``None`` or float16 [N, K / 256].
            bias: ``None`` or [N] floating.
            group_size: K / G.
            activation_dtype: "int8" for activations quantized per block of 32, or "exact".

        Returns:
            [..., N] in the dtype of ``x``.

        Raises:
            KernelArgumentError: x, bias or activation_dtype is not one that the operator takes.
            WeightFormatError: the stored tensors do not fit together, or are several weights.
        """
        weight = check_stored(name, record.format_type, group_size, qdata, scale, zero, scale_step, zero_step)
        check_linear(name, weight, x, bias, activation_dtype)
        if x.numel() == 0:
            return x.new_empty((*x.shape[:-1], weight.n))
        if x.device.type == "cuda":
            return run_linear(weight, x, bias, activation_dtype)
        return reference(x, *weight.tensors, bias, group_size, activation_dtype)

    @linear.register_fake
    def fake_linear(
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
        """Checks the arguments; returns a fake result."""
        weight = check_stored(name, record.format_type, group_size, qdata, scale, zero, scale_step, zero_step)
        check_linear(name, weight, x, bias, activation_dtype)
        return x.new_empty((*x.shape[:-1], weight.n))


def define_embedding(record: WeightFormat) -> None:
    """Defines ``etcuda::<name>_embedding``, which is its reference on a GPU too."""
    name = f"{record.name}_embedding"
    reference = functools.partial(embedding_reference, record.format_type)

    @custom_op(f"etcuda::{name}", mutates_args=())
    def embedding(
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
            qdata: as of ``linear``, and so the rest.
            dtype: of the result: bfloat16, float16 or float32.

        Returns:
            [..., K], rounded once.

        Raises:
            KernelArgumentError: indices or dtype is not one that the operator takes.
            WeightFormatError: the stored tensors do not fit together, or are several weights.
        """
        weight = check_stored(name, record.format_type, group_size, qdata, scale, zero, scale_step, zero_step)
        check_embedding(name, weight, indices, dtype)
        return reference(indices, *weight.tensors, group_size).to(dtype)

    @embedding.register_fake
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
        weight = check_stored(name, record.format_type, group_size, qdata, scale, zero, scale_step, zero_step)
        check_embedding(name, weight, indices, dtype)
        return qdata.new_empty((*indices.shape, weight.k), dtype=dtype)

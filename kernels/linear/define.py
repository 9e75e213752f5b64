"""What the operators on int4 and int8 weights are, defined alike for both.

``kind`` is the format of the weights; its ``bits`` stand in the operators' names, which docstrings here leave out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from etcuda.kernels.formats.base import GroupFormat
from etcuda.kernels.linear.check import check_embedding, check_linear
from etcuda.kernels.linear.choose.select import run_linear


def define_linear(kind: type[GroupFormat], reference: Callable[..., Tensor]) -> Any:
    """Defines ``int4_linear`` or ``int8_linear``; ``reference`` computes it on a CPU."""
    name = f"int{kind.bits}_linear"

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
            qdata: uint8 [N, K / 2] for int4, int8 [N, K] for int8.
            scale: float16, float32 or uint8 [N, G].
            zero: ``None``, the dtype of ``scale``, or for int4 with a floating ``scale`` uint8 [N, G].
            scale_step: ``None`` or float16 [N, K / 256].
            zero_step: ``None`` or float16 [N, K / 256].
            bias: ``None`` or [N] floating.
            group_size: K / G.
            activation_dtype: "int8" for activations rounded per block of 32, or "exact".

        Returns:
            [..., N] in the dtype of ``x``.

        Raises:
            KernelArgumentError: x, bias or activation_dtype is not one that the operator takes.
            WeightFormatError: the stored tensors do not fit together.
        """
        stored = (qdata, scale, zero, scale_step, zero_step)
        form, n, k = check_linear(name, kind, x, stored, bias, group_size, activation_dtype)
        if x.numel() == 0:
            return x.new_empty((*x.shape[:-1], n))
        if x.device.type == "cuda":
            return run_linear(kind.bits, form, n, k, x, stored, bias, activation_dtype)
        return reference(x, *stored, bias, group_size, activation_dtype)

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
        stored = (qdata, scale, zero, scale_step, zero_step)
        _, n, _ = check_linear(name, kind, x, stored, bias, group_size, activation_dtype)
        return x.new_empty((*x.shape[:-1], n))

    return linear


def define_embedding(kind: type[GroupFormat], reference: Callable[..., Tensor]) -> Any:
    """Defines ``int4_embedding`` or ``int8_embedding``; ``reference`` computes it in fp32."""
    name = f"int{kind.bits}_embedding"

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
            WeightFormatError: the stored tensors do not fit together.
        """
        stored = (qdata, scale, zero, scale_step, zero_step)
        check_embedding(name, kind, indices, stored, group_size, dtype)
        return reference(indices, *stored, group_size).to(dtype)

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
        stored = (qdata, scale, zero, scale_step, zero_step)
        _, _, k = check_embedding(name, kind, indices, stored, group_size, dtype)
        return qdata.new_empty((*indices.shape, k), dtype=dtype)

    return embedding

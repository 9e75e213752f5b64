"""The records of the kernels for one weight format."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from etcuda.kernels.activations.hopper.reorder import ARCH
from etcuda.kernels.common.registry import KernelRecord, register
from etcuda.kernels.common.sizes import hint
from etcuda.kernels.linear.choose.tune import TUNINGS
from etcuda.kernels.linear.problem import LinearProblem, cost, refuse, refuse_matvec
from etcuda.kernels.linear.samples import matmul_samples, matvec_samples


def register_kernels(
    owner: str, name: str, bits: int, reference: Callable[..., Tensor], of: Callable[..., Any]
) -> None:
    """Registers ``<name>_matvec`` and ``<name>_matmul``.

    Args:
        owner: the module that registers them.
        name: of the format.
        bits: of a weight.
        reference: of its linear layer.
        of: finds the format of stored tensors.
    """

    def problem(
        x: Tensor, qdata: Tensor, scale: Tensor, zero: Tensor | None, scale_step: Tensor | None,
        zero_step: Tensor | None, group_size: int, activation_dtype: str = "int8",
    ) -> LinearProblem:  # fmt: skip
        weight_format = of(group_size, scale, zero, scale_step, zero_step)
        k = hint(x.shape[-1])
        return LinearProblem(
            hint(x.numel()) // k, hint(qdata.shape[0]), k, bits, group_size, weight_format.scale_storage,
            weight_format.offset, activation_dtype, x.dtype.itemsize,
        )  # fmt: skip

    register(
        KernelRecord(
            op=f"etcuda::{name}_matvec",
            owner=owner,
            problem=problem,
            refuse=refuse_matvec,
            reference=functools.partial(reference, activation_dtype="int8"),
            cost=cost,
            samples=functools.partial(matvec_samples, bits),
            unserved=LinearProblem(9, 64, 64, bits),
            tuning=TUNINGS[bits],
        )
    )
    register(
        KernelRecord(
            op=f"etcuda::{name}_matmul",
            owner=owner,
            problem=problem,
            refuse=refuse,
            reference=reference,
            cost=cost,
            samples=functools.partial(matmul_samples, bits),
            unserved=LinearProblem(16, 64, 100, bits),
            arch=lambda warpgroups: ARCH if warpgroups else None,
            tuning=TUNINGS[bits],
        )
    )

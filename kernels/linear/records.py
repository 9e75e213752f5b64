"""The records of the kernels for one weight format."""

from __future__ import annotations

import functools

from torch import Tensor

from etcuda.kernels.activations.hopper.reorder import ARCH
from etcuda.kernels.common.registry import KernelRecord, register
from etcuda.kernels.formats.registry import WeightFormat
from etcuda.kernels.linear.choose.tune import TUNINGS
from etcuda.kernels.linear.problem import LinearProblem, cost, refuse, refuse_matvec
from etcuda.kernels.linear.reference import linear_reference, matvec_reference
from etcuda.kernels.linear.samples import matmul_samples, matvec_samples
from etcuda.torch_private import hint


def register_kernels(owner: str, record: WeightFormat) -> None:
    """Registers ``<name>_matvec`` and ``<name>_matmul`` of a format, as far as it has those kernels.

    Args:
        owner: the module that registers them.
        record: of the format.
    """
    reference = functools.partial(linear_reference, record.format_type)

    def problem(
        x: Tensor, qdata: Tensor, scale: Tensor, zero: Tensor | None, scale_step: Tensor | None,
        zero_step: Tensor | None, group_size: int, activation_dtype: str = "int8",
    ) -> LinearProblem:  # fmt: skip
        weight_format = record.format_type.of(group_size, scale, zero, scale_step, zero_step)
        k = hint(x.shape[-1])
        return LinearProblem.of(
            weight_format, hint(x.numel()) // k, hint(qdata.shape[0]), k, activation_dtype, x.dtype
        )  # fmt: skip

    if "matvec" in record.kernels:
        register(
            KernelRecord(
                op=f"etcuda::{record.name}_matvec",
                owner=owner,
                problem=problem,
                refuse=refuse_matvec,
                reference=functools.partial(matvec_reference, record.format_type),
                cost=cost,
                samples=functools.partial(matvec_samples, record),
                unserved=LinearProblem(9, 64, 64, record.name),
                tuning=TUNINGS[record.name],
            )
        )
    if "matmul" in record.kernels:
        register(
            KernelRecord(
                op=f"etcuda::{record.name}_matmul",
                owner=owner,
                problem=problem,
                refuse=refuse,
                reference=reference,
                cost=cost,
                samples=functools.partial(matmul_samples, record),
                unserved=LinearProblem(16, 64, 100, record.name),
                arch=lambda warpgroups: ARCH if warpgroups else None,
                tuning=TUNINGS[record.name],
            )
        )

"""Products of few rows with weights as they are, bf16 or fp16, and a gate's activation behind them. See README.md."""

from __future__ import annotations

from etcuda.kernels.common.registry import KernelRecord, register
from etcuda.kernels.dense import op as _op  # noqa: F401  defines the operator
from etcuda.kernels.dense.choose.tune import TUNING
from etcuda.kernels.dense.problem import DenseProblem, cost, problem_of, refuse
from etcuda.kernels.dense.reference import dense_matvec_reference
from etcuda.kernels.dense.samples import dense_samples

DENSE = register(
    KernelRecord(
        op="etcuda::dense_matvec",
        owner=__name__,
        problem=problem_of,
        refuse=refuse,
        reference=dense_matvec_reference,
        cost=cost,
        samples=dense_samples,
        unserved=DenseProblem(9, 64, 64),
        tuning=TUNING,
    )
)

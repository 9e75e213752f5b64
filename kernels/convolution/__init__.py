"""Convolutions with a bias, a residual and a ReLU, in one kernel. See README.md."""

from __future__ import annotations

from etcuda.kernels.common.registry import KernelRecord, register
from etcuda.kernels.convolution import op as _op  # noqa: F401  defines the operator
from etcuda.kernels.convolution.problem import ConvolutionProblem, cost, problem_of, refuse
from etcuda.kernels.convolution.reference import convolution_reference
from etcuda.kernels.convolution.samples import convolution_samples

CONVOLUTION = register(
    KernelRecord(
        op="etcuda::convolution",
        owner=__name__,
        problem=problem_of,
        refuse=refuse,
        reference=convolution_reference,
        cost=cost,
        samples=convolution_samples,
        unserved=ConvolutionProblem(1, 2, 2, 8, 0, 1, 8, 9),
    )
)

"""The next token of a language model: its filters and its random draw, in one kernel. See README.md."""

from __future__ import annotations

from etcuda.kernels.common.registry import KernelRecord, register
from etcuda.kernels.sampling import op as _op  # noqa: F401  defines the operator
from etcuda.kernels.sampling.problem import SamplingProblem, cost, problem_of, refuse
from etcuda.kernels.sampling.reference import draw_token_reference
from etcuda.kernels.sampling.samples import sampling_samples

SAMPLING = register(
    KernelRecord(
        op="etcuda::draw_token",
        owner=__name__,
        problem=problem_of,
        refuse=refuse,
        reference=draw_token_reference,
        cost=cost,
        samples=sampling_samples,
        unserved=SamplingProblem(1 << 20),
    )
)

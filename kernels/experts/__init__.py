"""Mixtures of experts: the products of a token with the experts that were chosen for it. See README.md."""

from __future__ import annotations

from etcuda.kernels.common.registry import KernelRecord, register
from etcuda.kernels.experts import op as _op  # noqa: F401  defines the operator
from etcuda.kernels.experts import routing as _routing  # noqa: F401  defines and registers its own
from etcuda.kernels.experts.problem import ExpertsProblem, cost, problem_of, refuse
from etcuda.kernels.experts.reference import experts_reference
from etcuda.kernels.experts.samples import experts_samples

EXPERTS = register(
    KernelRecord(
        op="etcuda::experts",
        owner=__name__,
        problem=problem_of,
        refuse=refuse,
        reference=experts_reference,
        cost=cost,
        samples=experts_samples,
        unserved=ExpertsProblem(1, 2, 8, 100, 64),
    )
)

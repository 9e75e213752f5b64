"""Rotary positions, norms of queries and keys, and the writes to KV caches, in one kernel. See README.md."""

from __future__ import annotations

from etcuda.kernels.common.registry import KernelRecord, register
from etcuda.kernels.rotary import op as _op  # noqa: F401  defines the operator
from etcuda.kernels.rotary.problem import RotaryProblem, cost, problem_of, refuse
from etcuda.kernels.rotary.reference import rotary_cache_reference
from etcuda.kernels.rotary.samples import rotary_samples

ROTARY = register(
    KernelRecord(
        op="etcuda::rotary_cache",
        owner=__name__,
        problem=problem_of,
        refuse=refuse,
        reference=rotary_cache_reference,
        cost=cost,
        samples=rotary_samples,
        unserved=RotaryProblem(1, 1, 1, 64, 65),
    )
)

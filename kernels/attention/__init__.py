"""Scaled dot-product attention: a split-K kernel for few query rows and a tiled one for many. See README.md."""

from __future__ import annotations

from etcuda.kernels.attention import op
from etcuda.kernels.attention.configs import split_candidates, tiled_candidates
from etcuda.kernels.attention.problem import AttentionProblem, cost, refuse
from etcuda.kernels.attention.reference import attention_reference
from etcuda.kernels.attention.split import MAX_QUERY
from etcuda.kernels.common.registry import KernelRecord, register


def _refuse_split(problem: AttentionProblem) -> str | None:
    most = problem.most_rows
    if most is None or most > MAX_QUERY:
        return f"L_q is at most {MAX_QUERY}, got {problem.l_q if most is None else most}"
    return refuse(problem)


SPLIT = register(
    KernelRecord(
        op="etcuda::attention_split",
        owner=__name__,
        refuse=_refuse_split,
        reference=attention_reference,
        fake=op.fake_split,
        implementations={"triton": op.attention_split},
        configurations=split_candidates,
        cost=cost,
    )
)
TILED = register(
    KernelRecord(
        op="etcuda::attention_tiled",
        owner=__name__,
        refuse=refuse,
        reference=attention_reference,
        fake=op.fake_tiled,
        implementations={"triton": op.attention_tiled},
        configurations=tiled_candidates,
        cost=cost,
    )
)

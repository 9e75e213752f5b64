"""Scaled dot-product attention: a split-K kernel for few query rows and a tiled one for many. See README.md."""

from __future__ import annotations

import torch

from etcuda.kernels.attention import model_op as _model_op  # noqa: F401  defines etcuda::attention
from etcuda.kernels.attention import op as _op  # noqa: F401  defines the operators
from etcuda.kernels.attention.problem import MAX_QUERY, AttentionProblem, cost, problem_of, refuse
from etcuda.kernels.attention.reference import attention_reference
from etcuda.kernels.attention.samples import split_samples, tiled_samples
from etcuda.kernels.attention.tune import TUNING
from etcuda.kernels.common.registry import KernelRecord, register

_KEPT_WHOLE = (torch.ops.aten.scaled_dot_product_attention.default,)


def _refuse_split(problem: AttentionProblem) -> str | None:
    most = problem.most_rows
    if most is None or most > MAX_QUERY:
        return f"L_q is at most {MAX_QUERY}, got {problem.l_q if most is None else most}"
    return refuse(problem)


SPLIT = register(
    KernelRecord(
        op="etcuda::attention_split",
        owner=__name__,
        problem=problem_of,
        refuse=_refuse_split,
        reference=attention_reference,
        cost=cost,
        samples=split_samples,
        unserved=AttentionProblem(1, 1, 1, 64, MAX_QUERY + 1, 100),
        kept_whole=_KEPT_WHOLE,
        tuning=TUNING,
    )
)
TILED = register(
    KernelRecord(
        op="etcuda::attention_tiled",
        owner=__name__,
        problem=problem_of,
        refuse=refuse,
        reference=attention_reference,
        cost=cost,
        samples=tiled_samples,
        unserved=AttentionProblem(1, 1, 1, 1024, 1, 1),
        kept_whole=_KEPT_WHOLE,
        tuning=TUNING,
    )
)

"""Scaled dot-product attention: a split-K kernel for few query rows and a tiled one for many. See README.md."""

from __future__ import annotations

import torch

from etcuda.kernels.attention import cluster_op as _cluster_op  # noqa: F401  defines etcuda::attention_cluster
from etcuda.kernels.attention import model_op as _model_op  # noqa: F401  defines etcuda::attention
from etcuda.kernels.attention import op as _op  # noqa: F401  defines the operators
from etcuda.kernels.attention.hopper.decode import ARCH, HEAD_DIMS, MAX_ROWS
from etcuda.kernels.attention.problem import MAX_QUERY, AttentionProblem, cost, problem_of, refuse
from etcuda.kernels.attention.reference import attention_reference
from etcuda.kernels.attention.samples import cluster_samples, split_samples, tiled_samples
from etcuda.kernels.attention.tune import TUNING
from etcuda.kernels.common.registry import KernelRecord, register

_KEPT_WHOLE = (torch.ops.aten.scaled_dot_product_attention.default,)


def _refuse_split(problem: AttentionProblem) -> str | None:
    most = problem.most_rows
    if most is None or most > MAX_QUERY:
        return f"L_q is at most {MAX_QUERY}, got {problem.l_q if most is None else most}"
    return refuse(problem)


def _refuse_cluster(problem: AttentionProblem) -> str | None:
    rows = problem.l_q * problem.group
    if rows not in (1, 2, 4, MAX_ROWS):
        return f"a KV head has 1, 2, 4 or {MAX_ROWS} rows, got {rows}"
    if problem.head_dim not in HEAD_DIMS:
        return f"head_dim is one of {HEAD_DIMS}, got {problem.head_dim}"
    if problem.has_mask:
        return "there is no mask tensor, got 1"
    return _refuse_split(problem)


CLUSTER = register(
    KernelRecord(
        op="etcuda::attention_cluster",
        owner=__name__,
        problem=problem_of,
        refuse=_refuse_cluster,
        reference=attention_reference,
        cost=cost,
        samples=cluster_samples,
        unserved=AttentionProblem(1, 3, 1, 64, 1, 100),
        arch=lambda: ARCH,
        kept_whole=_KEPT_WHOLE,
        tuning=TUNING,
    )
)
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

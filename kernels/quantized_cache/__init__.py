"""Caches of keys and values in 8 and 4 bits: writes to them, and attention over them. See README.md."""

from __future__ import annotations

from etcuda.kernels.attention.problem import AttentionProblem
from etcuda.kernels.common.registry import KernelRecord, register
from etcuda.kernels.quantized_cache import op as _op  # noqa: F401  defines the operators
from etcuda.kernels.quantized_cache.problem import (
    QuantizedProblem,
    StoreProblem,
    attention_problem,
    quantized_attention_cost,
    refuse_attention,
    refuse_store,
    store_cost,
    store_problem,
)
from etcuda.kernels.quantized_cache.reference import quantized_attention_reference, store_reference
from etcuda.kernels.quantized_cache.samples import attention_samples, store_samples

STORE = register(
    KernelRecord(
        op="etcuda::quantized_cache_store",
        owner=__name__,
        problem=store_problem,
        refuse=refuse_store,
        reference=store_reference,
        cost=store_cost,
        samples=store_samples,
        unserved=StoreProblem(1, 80, "tq4"),
    )
)
ATTENTION = register(
    KernelRecord(
        op="etcuda::quantized_attention",
        owner=__name__,
        problem=attention_problem,
        refuse=refuse_attention,
        reference=quantized_attention_reference,
        cost=quantized_attention_cost,
        samples=attention_samples,
        unserved=QuantizedProblem(AttentionProblem(1, 1, 1, 80, 1, 1), "tq4"),
    )
)

"""int8 weights: layout, tensor subclass, kernels. See README.md."""

from __future__ import annotations

from etcuda.kernels.int4.configs import matmul_candidates, matvec_candidates
from etcuda.kernels.int4.problem import cost, refuse, refuse_matvec
from etcuda.kernels.int8 import op
from etcuda.kernels.int8.reference import int8_linear_reference
from etcuda.kernels.registry import KernelRecord, register

MATVEC = register(
    KernelRecord(
        op="etcuda::int8_matvec",
        owner=__name__,
        refuse=refuse_matvec,
        reference=int8_linear_reference,
        fake=op.fake_matvec,
        implementations={"triton": op.int8_matvec, "triton, rounded before": op.int8_matvec_rounded},
        configurations=matvec_candidates,
        cost=cost,
    )
)
MATMUL = register(
    KernelRecord(
        op="etcuda::int8_matmul",
        owner=__name__,
        refuse=refuse,
        reference=int8_linear_reference,
        fake=op.fake_matmul,
        implementations={"triton": op.int8_matmul, "triton, ordered before": op.int8_matmul_ordered},
        configurations=matmul_candidates,
        cost=cost,
    )
)

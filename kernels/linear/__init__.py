"""Products with quantised weights, and look-ups. See README.md."""

from __future__ import annotations

from etcuda.kernels.common.registry import KernelRecord, register
from etcuda.kernels.linear import op
from etcuda.kernels.linear.choose.configs import matmul_candidates, matvec_candidates
from etcuda.kernels.linear.problem import cost, refuse, refuse_matvec
from etcuda.kernels.linear.reference import int4_linear_reference, int8_linear_reference

register(
    KernelRecord(
        op="etcuda::int4_matvec",
        owner=__name__,
        refuse=refuse_matvec,
        reference=int4_linear_reference,
        fake=op.fake_int4_matvec,
        implementations={"triton": op.int4_matvec, "triton, rounded before": op.int4_matvec_quantized},
        configurations=matvec_candidates,
        cost=cost,
    )
)
register(
    KernelRecord(
        op="etcuda::int4_matmul",
        owner=__name__,
        refuse=refuse,
        reference=int4_linear_reference,
        fake=op.fake_int4_matmul,
        implementations={"triton": op.int4_matmul, "triton, reordered before": op.int4_matmul_reordered},
        configurations=matmul_candidates,
        cost=cost,
    )
)
register(
    KernelRecord(
        op="etcuda::int8_matvec",
        owner=__name__,
        refuse=refuse_matvec,
        reference=int8_linear_reference,
        fake=op.fake_int8_matvec,
        implementations={"triton": op.int8_matvec, "triton, rounded before": op.int8_matvec_quantized},
        configurations=matvec_candidates,
        cost=cost,
    )
)
register(
    KernelRecord(
        op="etcuda::int8_matmul",
        owner=__name__,
        refuse=refuse,
        reference=int8_linear_reference,
        fake=op.fake_int8_matmul,
        implementations={"triton": op.int8_matmul, "triton, reordered before": op.int8_matmul_reordered},
        configurations=matmul_candidates,
        cost=cost,
    )
)

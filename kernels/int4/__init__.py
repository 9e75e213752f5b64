"""int4 weights: layout, tensor subclass, kernels. See README.md."""

from __future__ import annotations

from etcuda.kernels.int4 import op
from etcuda.kernels.int4.configs import matmul_candidates, matvec_candidates
from etcuda.kernels.int4.problem import cost, order_cost, quantize_cost, refuse, refuse_matvec
from etcuda.kernels.int4.reference import int4_linear_reference
from etcuda.kernels.quantized_reference import order_activation_reference, quantize_activation_reference
from etcuda.kernels.registry import KernelRecord, register

QUANTIZE = register(
    KernelRecord(
        op="etcuda::quantize_activation",
        owner=__name__,
        refuse=refuse,
        reference=quantize_activation_reference,
        fake=op.fake_quantize,
        implementations={"triton": op.quantize_activation},
        configurations=lambda problem, device: (),
        cost=quantize_cost,
    )
)
ORDER = register(
    KernelRecord(
        op="etcuda::order_activation",
        owner=__name__,
        refuse=refuse,
        reference=order_activation_reference,
        fake=op.fake_order,
        implementations={"triton": op.order_activation},
        configurations=lambda problem, device: (),
        cost=order_cost,
    )
)
MATVEC = register(
    KernelRecord(
        op="etcuda::int4_matvec",
        owner=__name__,
        refuse=refuse_matvec,
        reference=int4_linear_reference,
        fake=op.fake_matvec,
        implementations={"triton": op.int4_matvec, "triton, rounded before": op.int4_matvec_rounded},
        configurations=matvec_candidates,
        cost=cost,
    )
)
MATMUL = register(
    KernelRecord(
        op="etcuda::int4_matmul",
        owner=__name__,
        refuse=refuse,
        reference=int4_linear_reference,
        fake=op.fake_matmul,
        implementations={"triton": op.int4_matmul, "triton, ordered before": op.int4_matmul_ordered},
        configurations=matmul_candidates,
        cost=cost,
    )
)

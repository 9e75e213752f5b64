"""What produces activations, fused with rounding them to int8: RMSNorm and gated activations. See README.md."""

from __future__ import annotations

from etcuda.kernels.registry import KernelRecord, register
from etcuda.kernels.rounding import op, order_op
from etcuda.kernels.rounding.configs import gate_candidates, norm_candidates
from etcuda.kernels.rounding.problem import gate_cost, norm_cost, order_cost, refuse, refuse_order
from etcuda.kernels.rounding.reference import (
    gate_order_reference,
    gate_quantize_reference,
    rms_norm_quantize_reference,
)

NORM = register(
    KernelRecord(
        op="etcuda::rms_norm_quantize",
        owner=__name__,
        refuse=refuse,
        reference=rms_norm_quantize_reference,
        fake=op.fake_rms_norm_quantize,
        implementations={"triton": op.rms_norm_quantize},
        configurations=norm_candidates,
        cost=norm_cost,
    )
)
GATE = register(
    KernelRecord(
        op="etcuda::gate_quantize",
        owner=__name__,
        refuse=refuse,
        reference=gate_quantize_reference,
        fake=op.fake_gate_quantize,
        implementations={"triton": op.gate_quantize},
        configurations=gate_candidates,
        cost=gate_cost,
    )
)
GATE_ORDER = register(
    KernelRecord(
        op="etcuda::gate_order",
        owner=__name__,
        refuse=refuse_order,
        reference=gate_order_reference,
        fake=order_op.fake_gate_order,
        implementations={"cuda": order_op.gate_order},
        configurations=lambda problem, device: (),
        cost=order_cost,
    )
)

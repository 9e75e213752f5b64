"""What produces activations, fused with rounding them to int8: RMSNorm and gated activations. See README.md."""

from __future__ import annotations

from etcuda.kernels.activations import op, quantize_op, reorder_op
from etcuda.kernels.activations.choose.configs import gate_candidates, norm_candidates
from etcuda.kernels.activations.problem import (
    gate_cost,
    gate_order_cost,
    norm_cost,
    order_cost,
    quantize_cost,
    refuse,
    refuse_order,
)
from etcuda.kernels.activations.reference import (
    gate_order_reference,
    gate_quantize_reference,
    order_activation_reference,
    quantize_activation_reference,
    rms_norm_quantize_reference,
)
from etcuda.kernels.common.registry import KernelRecord, register

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
        fake=reorder_op.fake_gate_order,
        implementations={"cuda": reorder_op.gate_order},
        configurations=lambda problem, device: (),
        cost=gate_order_cost,
    )
)
QUANTIZE = register(
    KernelRecord(
        op="etcuda::quantize_activation",
        owner=__name__,
        refuse=refuse,
        reference=quantize_activation_reference,
        fake=quantize_op.fake_quantize,
        implementations={"triton": quantize_op.quantize_activation},
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
        fake=reorder_op.fake_order,
        implementations={"triton": reorder_op.order_activation},
        configurations=lambda problem, device: (),
        cost=order_cost,
    )
)

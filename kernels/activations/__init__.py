"""What produces activations, fused with rounding them to int8: RMSNorm and gated activations. See README.md."""

from __future__ import annotations

from etcuda.kernels.activations import op, quantize_op, reorder_op
from etcuda.kernels.activations.choose.configs import gate_candidates, norm_candidates
from etcuda.kernels.activations.problem import (
    gate_cost,
    gate_reorder_cost,
    norm_cost,
    quantize_cost,
    refuse,
    refuse_reorder,
    reorder_cost,
)
from etcuda.kernels.activations.reference import (
    gate_quantize_reference,
    gate_reorder_reference,
    quantize_activation_reference,
    reorder_activation_reference,
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
GATE_REORDER = register(
    KernelRecord(
        op="etcuda::gate_reorder",
        owner=__name__,
        refuse=refuse_reorder,
        reference=gate_reorder_reference,
        fake=reorder_op.fake_gate_reorder,
        implementations={"cuda": reorder_op.gate_reorder},
        configurations=lambda problem, device: (),
        cost=gate_reorder_cost,
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
        op="etcuda::reorder_activation",
        owner=__name__,
        refuse=refuse,
        reference=reorder_activation_reference,
        fake=reorder_op.fake_reorder,
        implementations={"triton": reorder_op.reorder_activation},
        configurations=lambda problem, device: (),
        cost=reorder_cost,
    )
)

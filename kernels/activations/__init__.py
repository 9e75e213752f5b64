"""RMSNorm and gated activations, quantized or reordered by the kernel that computes them. See README.md."""

from __future__ import annotations

from etcuda.kernels.activations import norm_op as _norm_op  # noqa: F401
from etcuda.kernels.activations import op as _op  # noqa: F401  defines operators
from etcuda.kernels.activations import quantize_op as _quantize_op  # noqa: F401
from etcuda.kernels.activations import reorder_op as _reorder_op  # noqa: F401
from etcuda.kernels.activations import samples
from etcuda.kernels.activations.choose.tune import TUNING
from etcuda.kernels.activations.hopper.reorder import ARCH
from etcuda.kernels.activations.problem import (
    ActivationProblem,
    gate_cost,
    gate_problem_of,
    gate_reorder_cost,
    norm_alone_cost,
    norm_cost,
    norm_problem_of,
    problem_of,
    quantize_cost,
    refuse,
    refuse_gate_reorder,
    reorder_cost,
)
from etcuda.kernels.activations.reference import (
    gate_quantize_reference,
    gate_reorder_reference,
    quantize_activation_reference,
    reorder_activation_reference,
    rms_norm_kept_reference,
    rms_norm_quantize_reference,
)
from etcuda.kernels.common.registry import KernelRecord, register

_UNSERVED = ActivationProblem(1, 100)

NORM = register(
    KernelRecord(
        op="etcuda::rms_norm_quantize",
        owner=__name__,
        problem=norm_problem_of,
        refuse=refuse,
        reference=rms_norm_quantize_reference,
        cost=norm_cost,
        samples=samples.norm_samples,
        unserved=_UNSERVED,
        tuning=TUNING,
    )
)
NORM_ALONE = register(
    KernelRecord(
        op="etcuda::rms_norm",
        owner=__name__,
        problem=norm_problem_of,
        refuse=refuse,
        reference=rms_norm_kept_reference,
        cost=norm_alone_cost,
        samples=samples.norm_alone_samples,
        unserved=_UNSERVED,
        tuning=TUNING,
    )
)
GATE = register(
    KernelRecord(
        op="etcuda::gate_quantize",
        owner=__name__,
        problem=gate_problem_of,
        refuse=refuse,
        reference=gate_quantize_reference,
        cost=gate_cost,
        samples=samples.gate_samples,
        unserved=_UNSERVED,
        tuning=TUNING,
    )
)
GATE_REORDER = register(
    KernelRecord(
        op="etcuda::gate_reorder",
        owner=__name__,
        problem=gate_problem_of,
        refuse=refuse_gate_reorder,
        reference=gate_reorder_reference,
        cost=gate_reorder_cost,
        samples=samples.gate_reorder_samples,
        unserved=ActivationProblem(1, 64),
        arch=lambda: ARCH,
        on_host=False,
    )
)
QUANTIZE = register(
    KernelRecord(
        op="etcuda::quantize_activation",
        owner=__name__,
        problem=problem_of,
        refuse=refuse,
        reference=quantize_activation_reference,
        cost=quantize_cost,
        samples=samples.quantize_samples,
        unserved=_UNSERVED,
        tuning=TUNING,
    )
)
REORDER = register(
    KernelRecord(
        op="etcuda::reorder_activation",
        owner=__name__,
        problem=problem_of,
        refuse=refuse,
        reference=reorder_activation_reference,
        cost=reorder_cost,
        samples=samples.reorder_samples,
        unserved=_UNSERVED,
        arch=lambda tiled: ARCH if tiled else None,
        on_host=False,
    )
)

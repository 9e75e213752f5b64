"""Recurrent layers: gated delta nets, causal convolutions with a state, Mamba 2's selective scan. See README.md."""

from __future__ import annotations

from etcuda.kernels.common.registry import KernelRecord, register
from etcuda.kernels.recurrent import conv_op as _conv_op  # noqa: F401  defines the operator
from etcuda.kernels.recurrent import delta_op as _delta_op  # noqa: F401  defines the operator
from etcuda.kernels.recurrent import layer_op as _layer_op  # noqa: F401  defines the operator
from etcuda.kernels.recurrent import problem as calls
from etcuda.kernels.recurrent import samples
from etcuda.kernels.recurrent import scan_op as _scan_op  # noqa: F401  defines the operator
from etcuda.kernels.recurrent.reference.conv import causal_conv_reference
from etcuda.kernels.recurrent.reference.delta import gated_delta_rule_reference
from etcuda.kernels.recurrent.reference.layer import gated_delta_layer_reference
from etcuda.kernels.recurrent.reference.scan import selective_scan_reference

CAUSAL_CONV = register(
    KernelRecord(
        op="etcuda::causal_conv",
        owner=__name__,
        problem=calls.conv_problem,
        refuse=calls.refuse_conv,
        reference=causal_conv_reference,
        cost=calls.conv_cost,
        samples=samples.conv_samples,
        unserved=calls.ConvProblem(1, 1, 64, 9),
    )
)
GATED_DELTA_RULE = register(
    KernelRecord(
        op="etcuda::gated_delta_rule",
        owner=__name__,
        problem=calls.delta_problem,
        refuse=calls.refuse_heads,
        reference=gated_delta_rule_reference,
        cost=calls.delta_cost,
        samples=samples.delta_samples,
        unserved=calls.DeltaProblem(1, 1, 4, 4, 512, 64),
    )
)
GATED_DELTA_LAYER = register(
    KernelRecord(
        op="etcuda::gated_delta_layer",
        owner=__name__,
        problem=calls.layer_problem,
        refuse=calls.refuse_layer,
        reference=gated_delta_layer_reference,
        cost=calls.delta_cost,
        samples=samples.layer_samples,
        unserved=calls.DeltaProblem(1, 1, 4, 4, 256, 256),
        launched_early=True,
    )
)
SELECTIVE_SCAN = register(
    KernelRecord(
        op="etcuda::selective_scan",
        owner=__name__,
        problem=calls.scan_problem,
        refuse=calls.refuse_heads,
        reference=selective_scan_reference,
        cost=calls.scan_cost,
        samples=samples.scan_samples,
        unserved=calls.ScanProblem(1, 1, 4, 1, 512, 64),
    )
)

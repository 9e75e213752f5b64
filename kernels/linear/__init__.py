"""Products with quantised weights, and look-ups. See README.md."""

from __future__ import annotations

import functools

from etcuda.kernels.common.registry import KernelRecord, register
from etcuda.kernels.formats.registry import formats
from etcuda.kernels.linear.choose.configs import matmul_candidates, matvec_candidates
from etcuda.kernels.linear.op import KERNELS
from etcuda.kernels.linear.problem import cost, refuse, refuse_matvec
from etcuda.kernels.linear.reference import linear_reference

for _record in formats():
    _reference = functools.partial(linear_reference, _record.format_type)
    if "matvec" in _record.kernels:
        _matvec, _fake = KERNELS[f"{_record.name}_matvec"]
        _quantized, _ = KERNELS[f"{_record.name}_matvec_quantized"]
        register(
            KernelRecord(
                op=f"etcuda::{_record.name}_matvec",
                owner=__name__,
                refuse=refuse_matvec,
                reference=_reference,
                fake=_fake,
                implementations={"triton": _matvec, "triton, activations quantized before": _quantized},
                configurations=matvec_candidates,
                cost=cost,
            )
        )
    if "matmul" in _record.kernels:
        _matmul, _fake = KERNELS[f"{_record.name}_matmul"]
        _reordered, _ = KERNELS[f"{_record.name}_matmul_reordered"]
        register(
            KernelRecord(
                op=f"etcuda::{_record.name}_matmul",
                owner=__name__,
                refuse=refuse,
                reference=_reference,
                fake=_fake,
                implementations={"triton": _matmul, "triton, activations reordered before": _reordered},
                configurations=matmul_candidates,
                cost=cost,
            )
        )

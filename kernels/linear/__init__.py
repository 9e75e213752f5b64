"""Products with quantized weights, and look-ups. See README.md."""

from __future__ import annotations

from etcuda.kernels.formats.registry import formats
from etcuda.kernels.linear import op as _op  # noqa: F401  defines the operators
from etcuda.kernels.linear.records import register_kernels

for _record in formats():
    register_kernels(__name__, _record)

"""Products with quantized weights, and look-ups. See README.md."""

from __future__ import annotations

from etcuda.kernels.formats.int4 import Int4Format
from etcuda.kernels.formats.int8 import Int8Format
from etcuda.kernels.linear import op as _op  # noqa: F401  defines the operators
from etcuda.kernels.linear.records import register_kernels
from etcuda.kernels.linear.reference import int4_linear_reference, int8_linear_reference

register_kernels(__name__, "int4", 4, int4_linear_reference, Int4Format.of)
register_kernels(__name__, "int8", 8, int8_linear_reference, Int8Format.of)

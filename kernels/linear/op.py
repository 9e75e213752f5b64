"""Operators on quantised weights, defined alike for every weight format.

``etcuda::int4_linear`` and ``etcuda::int4_embedding`` say what is computed: an exported model holds one of them per
layer. On a CPU they compute the reference, on a GPU what was measured to be fastest. The others are the kernels.
"""

from __future__ import annotations

from etcuda.kernels.formats.registry import formats
from etcuda.kernels.linear.define import define_embedding, define_linear
from etcuda.kernels.linear.define_kernels import (
    Defined,
    define_matmul,
    define_matmul_reordered,
    define_matvec,
    define_matvec_quantized,
)

# Every operator that is a kernel, and its fake, by name: "int4_matvec".
KERNELS: dict[str, Defined] = {}

for _record in formats():
    define_linear(_record)
    define_embedding(_record)
    if "matvec" in _record.kernels:
        KERNELS[f"{_record.name}_matvec"] = define_matvec(_record)
        KERNELS[f"{_record.name}_matvec_quantized"] = define_matvec_quantized(_record)
    if "matmul" in _record.kernels:
        KERNELS[f"{_record.name}_matmul"] = define_matmul(_record)
        KERNELS[f"{_record.name}_matmul_reordered"] = define_matmul_reordered(_record)

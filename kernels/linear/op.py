"""Operators on quantised weights, defined alike for every format.

``etcuda::int4_linear`` and ``etcuda::int4_embedding`` say what is computed: an exported model holds one of them per
layer. On a CPU they compute the reference, on a GPU what was measured to be fastest. The others are the kernels.
"""

from __future__ import annotations

from etcuda.kernels.formats.int4 import Int4Format
from etcuda.kernels.formats.int8 import Int8Format
from etcuda.kernels.linear.define import define_embedding, define_linear
from etcuda.kernels.linear.define_kernels import (
    define_matmul,
    define_matmul_reordered,
    define_matvec,
    define_matvec_quantized,
)
from etcuda.kernels.linear.reference import (
    int4_embedding_reference,
    int4_linear_reference,
    int8_embedding_reference,
    int8_linear_reference,
)

int4_linear = define_linear(Int4Format, int4_linear_reference)
int4_embedding = define_embedding(Int4Format, int4_embedding_reference)
int4_matvec, fake_int4_matvec = define_matvec(Int4Format)
int4_matvec_quantized, _ = define_matvec_quantized(Int4Format)
int4_matmul, fake_int4_matmul = define_matmul(Int4Format)
int4_matmul_reordered, _ = define_matmul_reordered(Int4Format)
int8_linear = define_linear(Int8Format, int8_linear_reference)
int8_embedding = define_embedding(Int8Format, int8_embedding_reference)
int8_matvec, fake_int8_matvec = define_matvec(Int8Format)
int8_matvec_quantized, _ = define_matvec_quantized(Int8Format)
int8_matmul, fake_int8_matmul = define_matmul(Int8Format)
int8_matmul_reordered, _ = define_matmul_reordered(Int8Format)

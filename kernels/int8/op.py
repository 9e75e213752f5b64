"""Operators on int8 weights.

``etcuda::int8_linear`` and ``etcuda::int8_embedding`` say what is computed: an exported model holds one of them per
layer. On a CPU they compute the reference, on a GPU what was measured to be fastest. The others are the kernels.
"""

from __future__ import annotations

from etcuda.kernels.int4.define import define_embedding, define_linear
from etcuda.kernels.int4.define_kernels import (
    define_matmul,
    define_matmul_ordered,
    define_matvec,
    define_matvec_rounded,
)
from etcuda.kernels.int8.layout import Int8Format
from etcuda.kernels.int8.reference import int8_embedding_reference, int8_linear_reference

int8_linear = define_linear(Int8Format, int8_linear_reference)
int8_embedding = define_embedding(Int8Format, int8_embedding_reference)
int8_matvec, fake_matvec = define_matvec(Int8Format)
int8_matvec_rounded, fake_matvec_rounded = define_matvec_rounded(Int8Format)
int8_matmul, fake_matmul = define_matmul(Int8Format)
int8_matmul_ordered, fake_matmul_ordered = define_matmul_ordered(Int8Format)

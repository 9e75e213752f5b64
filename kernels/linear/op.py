"""Operators on quantised weights, defined alike for every weight format.

``etcuda::int4_linear`` and ``etcuda::int4_embedding`` say what is computed: an exported model holds one of them per
layer. On a CPU they compute the reference, on a GPU what was measured to be fastest. The others are the kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from etcuda.kernels.formats.registry import formats
from etcuda.kernels.linear.define import define_embedding, define_linear
from etcuda.kernels.linear.define_kernels import (
    define_matmul,
    define_matmul_reordered,
    define_matvec,
    define_matvec_quantized,
)
from etcuda.kernels.linear.reference import embedding_reference, linear_reference

# Every operator and its fake, by name: "int4_matvec".
OPERATORS: dict[str, tuple[Any, Callable[..., Any]]] = {}

for _record in formats():
    _format = _record.format_type
    define_linear(_format, functools.partial(linear_reference, _format))
    define_embedding(_format, functools.partial(embedding_reference, _format))
    if "matvec" in _record.kernels:
        OPERATORS[f"{_record.name}_matvec"] = define_matvec(_format)
        OPERATORS[f"{_record.name}_matvec_quantized"] = define_matvec_quantized(_format)
    if "matmul" in _record.kernels:
        OPERATORS[f"{_record.name}_matmul"] = define_matmul(_format)
        OPERATORS[f"{_record.name}_matmul_reordered"] = define_matmul_reordered(_format)

"""int4 products and look-ups in plain PyTorch; see ``etcuda.kernels.quantized_reference``."""

from __future__ import annotations

import functools

from etcuda.kernels.int4.layout import Int4Format
from etcuda.kernels.quantized_reference import embedding_reference, linear_reference

int4_linear_reference = functools.partial(linear_reference, Int4Format)
int4_embedding_reference = functools.partial(embedding_reference, Int4Format)

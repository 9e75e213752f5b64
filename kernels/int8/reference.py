"""int8 products and look-ups in plain PyTorch; see ``etcuda.kernels.quantized_reference``."""

from __future__ import annotations

import functools

from etcuda.kernels.int8.layout import Int8Format
from etcuda.kernels.quantized_reference import embedding_reference, linear_reference

int8_linear_reference = functools.partial(linear_reference, Int8Format)
int8_embedding_reference = functools.partial(embedding_reference, Int8Format)

"""Products of 8-bit integers, exact in 32 bits."""

from __future__ import annotations

import torch
from torch import Tensor

from etcuda.passes.decompositions.record import Arguments, Decomposition

aten = torch.ops.aten

# So many products of 8-bit integers have a sum below 2**22, which every product in fp32 has exactly, in TF32 too.
_EXACT = 256


def int_mm(a: Tensor, b: Tensor) -> Tensor:
    """(M, K) int8 by (K, N) int8: (M, N) int32, from products in fp32 of parts of K that are exact."""
    rows, depth = a.shape
    a, b = a.to(torch.float32), b.to(torch.float32)
    if isinstance(depth, int) and depth <= _EXACT:
        return torch.mm(a, b).to(torch.int32)
    parts = (depth + _EXACT - 1) // _EXACT
    missing = parts * _EXACT - depth
    a = aten.constant_pad_nd.default(a, [0, missing]).reshape(rows, parts, _EXACT).transpose(0, 1)
    b = aten.constant_pad_nd.default(b, [0, 0, 0, missing]).reshape(parts, _EXACT, b.shape[1])
    return torch.bmm(a, b).to(torch.int32).sum(0, dtype=torch.int32)


def _refuse_dtype(given: Arguments) -> str | None:
    dtypes = {given["self"].dtype, given["mat2"].dtype}
    return None if dtypes == {torch.int8} else f"_int_mm takes int8, got {', '.join(sorted(map(str, dtypes)))}"


DECOMPOSITIONS = (Decomposition((aten._int_mm.default,), int_mm, refuse=_refuse_dtype),)

"""Bytes side by side."""

from __future__ import annotations

import torch
from torch import Tensor

aten = torch.ops.aten

_BYTES = frozenset({torch.int8, torch.uint8})


def is_of_bytes(host: bool, tensors: list[Tensor], dim: int = 0) -> bool:
    """Whether all are bytes, which Inductor hands to a library on the host."""
    return host and {tensor.dtype for tensor in tensors} <= _BYTES


def cat(host: bool, tensors: list[Tensor], dim: int = 0) -> Tensor:
    """Joined as int16, to which and from which the loops convert on the way."""
    dtypes = {tensor.dtype for tensor in tensors}
    joined: Tensor = aten.cat.default([tensor.to(torch.int16) for tensor in tensors], dim)
    return joined if len(dtypes) > 1 else joined.to(dtypes.pop())

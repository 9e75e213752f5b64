"""Integers in the order of numbers."""

from __future__ import annotations

import torch
from torch import Tensor

# An index takes the lower half of a packed key.
INDEX_BITS = 32
LAST = torch.iinfo(torch.int64).max


def is_wide(dtype: torch.dtype) -> bool:
    """Whether a key takes all of an int64, so that no index fits beside it."""
    return dtype in (torch.int64, torch.float64)


def ordered_keys(x: Tensor, descending: bool = False) -> Tensor:
    """Integers that compare as the elements of ``x`` do: int64 of int64 and float64, int32 of every other dtype.

    A NaN is greater than every number, and two of them are equal, as are 0.0 and -0.0. ``descending`` turns the order
    round. The integer with a float's bits is in the float's order where the sign is clear; where it is set, the other
    bits are flipped.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if x.is_floating_point():
        keys = torch.int64 if x.dtype == torch.float64 else torch.int32
        x = torch.where(x == 0, 0.0, x)
        bits = x.view(keys)
        keys_of = torch.where(bits < 0, bits ^ torch.iinfo(keys).max, bits)
        found = torch.where(x.isnan(), torch.iinfo(keys).max, keys_of)
    else:
        found = x if x.dtype in (torch.int32, torch.int64) else x.to(torch.int32)
    return ~found if descending else found


def packed_keys(x: Tensor, descending: bool = False) -> Tensor:
    """Keys (R, n), int64, all different, in the order of a stable sort of the rows of ``x`` (R, n), not wide."""
    index = torch.arange(x.shape[-1], device=x.device)
    return ordered_keys(x, descending).to(torch.int64) * (1 << INDEX_BITS) + index


def packed_indices(keys: Tensor) -> Tensor:
    """The indices within packed keys."""
    return keys & ((1 << INDEX_BITS) - 1)

"""A plain read of as many bytes as a weight has: what the memory alone takes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


@triton.jit
def read_kernel(source, out, num_words, BLOCK: tl.constexpr):
    """Sums words; one sum per program."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    words = tl.load(source + at, mask=at < num_words, other=0, eviction_policy="evict_first")
    tl.store(out + tl.program_id(0), tl.sum(words, 0))


def read(source: Tensor) -> Tensor:
    """Reads ``source``, int32 of one dimension; returns sums of blocks."""
    programs = triton.cdiv(source.numel(), _BLOCK)
    out = torch.empty(programs, dtype=torch.int32, device=source.device)
    read_kernel[(programs,)](source, out, source.numel(), BLOCK=_BLOCK, num_warps=8)
    return out

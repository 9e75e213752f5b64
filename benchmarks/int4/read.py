"""A plain read of as many bytes as a weight has: what the memory alone takes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from etcuda.kernels.common.pdl import choose_kernel

_BLOCK = 4096


@triton.jit
def _read(source, out, num_words, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Sums words; one sum per CTA."""
    if PDL:
        gdc_launch_dependents()
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    words = tl.load(source + at, mask=at < num_words, other=0, eviction_policy="evict_first")
    if PDL:
        gdc_wait()
    tl.store(out + tl.program_id(0), tl.sum(words, 0))


@triton.jit
def read_kernel(source, out, num_words, BLOCK: tl.constexpr):
    """Sums words."""
    _read(source, out, num_words, BLOCK, False)


@triton.jit
def read_pdl(source, out, num_words, BLOCK: tl.constexpr):
    """Like ``read_kernel``, and may be launched while the kernel in front of it runs."""
    _read(source, out, num_words, BLOCK, True)


def read(source: Tensor, pdl: int = 0) -> Tensor:
    """Reads ``source``, int32 of one dimension; returns sums of blocks."""
    ctas = triton.cdiv(source.numel(), _BLOCK)
    out = torch.empty(ctas, dtype=torch.int32, device=source.device)
    kernel, early = choose_kernel(source, read_kernel, read_pdl, pdl)
    kernel[(ctas,)](source, out, source.numel(), BLOCK=_BLOCK, num_warps=8, **early)
    return out

"""A gated activation by itself, for what runs in front of a product."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_BLOCK = 1024


@triton.jit
def _silu_gate(both, y, numbers, K: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numbers
    from_row = both + at // K * 2 * K + at % K
    gate = tl.load(from_row, mask=inside).to(tl.float32)
    up = tl.load(from_row + K, mask=inside).to(tl.float32)
    active = (gate / (1.0 + tl.exp(-gate))).to(y.dtype.element_ty).to(tl.float32)
    tl.store(y + at, (active * up).to(y.dtype.element_ty), mask=inside)


def silu_gate(both: Tensor, pdl: int) -> Tensor:
    """silu(gate) * up [M, K] of both side by side [M, 2 K], one kernel; ``pdl`` as of our operators."""
    m, k = both.shape[0], both.shape[1] // 2
    y = torch.empty((m, k), dtype=both.dtype, device=both.device)
    early = {"launch_pdl": True} if pdl else {}
    _silu_gate[(triton.cdiv(m * k, _BLOCK),)](both, y, m * k, K=k, BLOCK=_BLOCK, PDL=pdl, **early)
    return y

"""Bags of rows of a table."""

from __future__ import annotations

import torch
from torch import Tensor

from etcuda.passes.library.scatter import scatter_reduce
from etcuda.passes.library.search import search

aten = torch.ops.aten


def embedding_bag(
    host: bool,
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Tensor]:
    """(B, D): sums, means or maxima of rows of a table (V, D), by bags of indices (n) that begin at offsets (B).

    Rows are summed in float32 at least. A row of padding goes to a bag more.
    """
    bags = offsets.shape[0] - int(include_last_offset)
    place = torch.arange(indices.shape[0], device=weight.device, dtype=offsets.dtype)
    bag = search(host, offsets[:bags], place, right=True) - 1
    if padding_idx >= 0:
        bag = torch.where(indices == padding_idx, bags, bag)
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    rows = weight.index_select(0, indices).to(wide)
    total = torch.zeros([bags + 1, weight.shape[1]], dtype=wide, device=weight.device)
    if mode == 2:
        each = bag[:, None].expand(rows.shape)
        found = scatter_reduce(host, total, 0, each, rows, "amax", include_self=False)
        return (found[:bags].to(weight.dtype),)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.to(wide)[:, None]
    summed: Tensor = aten.index_put.default(total, [bag], rows, True)[:bags]
    if mode == 1:
        ones = torch.ones_like(bag, dtype=torch.int32)
        count = aten.index_put.default(torch.zeros([bags + 1], dtype=torch.int32), [bag], ones, True)[:bags]
        summed = summed / count.clamp(min=1)[:, None].to(wide)
    return (summed.to(weight.dtype),)

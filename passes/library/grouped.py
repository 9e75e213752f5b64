"""Products of groups of rows with a matrix each, as the experts of a mixture take them."""

from __future__ import annotations

import torch
from torch import Tensor

aten = torch.ops.aten

# Rows of a block, all of one group: enough for tensor cores; with more, fewer matrices are copied.
_FEW_ROWS, _MANY_ROWS = 16, 64
_MANY = 1024


def grouped_mm(
    host: bool, self: Tensor, mat2: Tensor, offs: Tensor | None, bias: Tensor | None, out_dtype: torch.dtype | None
) -> Tensor:
    """Row r times the matrix of its group: (S, K) by (G, K, N) is (S, N); or without groups (G, S, K) by (G, K, N).

    Groups are cut into blocks of rows, padded where a group ends, and one batched product takes every block with a copy
    of its group's matrix. There are at most S / block + G blocks, and at most S: nothing depends on where groups end,
    so nothing is read on the host.

    Args:
        host: whether the target is the host; nothing depends on it.
        self: the rows, sorted by group.
        mat2: a matrix a group.
        offs: (G,) integers that do not fall: one past the last row of each group. Rows after the last are zero.
        bias: ``None``.
        out_dtype: ``None``, or that of the rows.
    """
    rows, matrices, ends = self, mat2, offs
    if ends is None:
        return torch.bmm(rows, matrices)
    count, groups = rows.shape[0], matrices.shape[0]
    size = _FEW_ROWS if isinstance(count, int) and count < _MANY else _MANY_ROWS
    ends = ends.to(torch.int64)
    starts = aten.constant_pad_nd.default(ends[:-1], [1, 0])
    blocks = (ends - starts + (size - 1)) // size
    group = torch.arange(groups, device=rows.device)
    last_blocks = torch.where(group[None] <= group[:, None], blocks[None], 0).sum(-1)
    first_blocks = last_blocks - blocks

    block = torch.arange(torch.sym_min(count, count // size + groups), device=rows.device)
    of_block = (last_blocks[None] <= block[:, None]).sum(-1).clamp(max=groups - 1)
    start = starts[of_block] + (block - first_blocks[of_block]) * size
    taken = start[:, None] + torch.arange(size, device=rows.device)
    products = torch.bmm(rows[taken.clamp(max=count - 1)], matrices[of_block])

    row = torch.arange(count, device=rows.device)
    of_row = (ends[None] <= row[:, None]).sum(-1)
    known = of_row.clamp(max=groups - 1)
    place = first_blocks[known] * size + (row - starts[known])
    place = torch.where(of_row < groups, place, 0)
    found = products.reshape(-1, matrices.shape[2])[place]
    return torch.where((of_row < groups)[:, None], found, 0)

"""``etcuda::part_edge``: a value that goes from one part of a repeated graph to another.

In a graph that is compiled as one it keeps the value as parts would: in memory, in its own dtype, and computed by no
kernel that also reads it behind the edge. So the graph has the same bits as its parts.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("etcuda::part_edge", mutates_args=())
def part_edge(x: Tensor, leaves: bool) -> Tensor:
    """A copy of ``x``, of any shape and dtype, with its strides. Compiled code has the value itself.

    Args:
        x: the value.
        leaves: where its part ends; otherwise where the value is made.
    """
    return _empty_like(x).copy_(x)


@part_edge.register_fake
def part_edge_fake(x: Tensor, leaves: bool) -> Tensor:
    """The shape, strides and dtype of ``x``."""
    return _empty_like(x)


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)

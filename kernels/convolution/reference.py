"""What ``etcuda::convolution`` computes, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def convolution_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool,
) -> Tensor:
    """[N, O, OH, OW], channels last, in the dtype of ``x``; sums in fp32. The arguments are the operator's."""
    filters = weight.permute(0, 3, 1, 2).float()
    result: Tensor = torch.ops.aten.convolution.default(
        x.float(),
        filters,
        None if bias is None else bias.float(),
        list(stride),
        list(padding),
        list(dilation),
        False,
        [0, 0],
        groups,
    )
    if residual is not None:
        result = result + residual.float()
    if relu:
        result = result.relu()
    return result.to(x.dtype).contiguous(memory_format=torch.channels_last)

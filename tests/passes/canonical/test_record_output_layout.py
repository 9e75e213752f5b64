"""The order of a tensor's dimensions in memory."""

from __future__ import annotations

import pytest
import torch

from etcuda.passes.canonical.record_output_layout import dim_order


@pytest.mark.parametrize(
    ("tensor", "order"),
    [
        (torch.zeros(2, 3, 4, 5), (0, 1, 2, 3)),
        (torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last), (0, 2, 3, 1)),
        (torch.zeros(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d), (0, 2, 3, 4, 1)),
        (torch.zeros(3, 4).t(), (1, 0)),
        (torch.zeros(1, 1, 1, 1).to(memory_format=torch.channels_last), (0, 1, 2, 3)),
        (torch.zeros(()), ()),
    ],
)
def test_dim_order(tensor: torch.Tensor, order: tuple[int, ...]) -> None:
    assert dim_order(tensor) == order

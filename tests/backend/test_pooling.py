"""Maximum pooling of images whose size is not known, down to those of which one row or column is left."""

from __future__ import annotations

import pathlib

import pytest
import torch
from torch import nn
from torch.export import Dim

from examples.running import run_host
from tests.backend.test_library_calls import export


class Pools(nn.Module):
    """As AlexNet, SqueezeNet and Inception pool; the second also in 3D, and with the places of the maxima."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        once = nn.functional.max_pool2d(x, 3, 2)
        again, places = nn.functional.max_pool2d(once, 3, 2, ceil_mode=True, return_indices=True)
        return once, again, places, nn.functional.max_pool3d(x, (1, 3, 3), (1, 2, 2))

"""A convolutional net in int8 by PT2E: weights and activations, static ranges, residual and depthwise convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.zoo.base import Entry, numbers


class ConvNet(nn.Module):
    """A stem, a residual block, a depthwise block, an average and a linear layer."""

    def __init__(self, channels: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, stride=2, padding=1), nn.ReLU())
        self.inner = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.pointwise = nn.Conv2d(channels, 2 * channels, 1)
        self.head = nn.Linear(2 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, height, width] to [batch, classes]."""
        h = self.stem(x)
        h = nn.functional.relu(h + self.inner(h))
        h = nn.functional.relu6(self.pointwise(nn.functional.relu6(self.depthwise(h))))
        h = nn.functional.max_pool2d(h, 2)
        out: Tensor = self.head(h.mean((2, 3)))
        return out


class Quantized(nn.Module):
    """A graph that PT2E converted, which has no modes to change."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def train(self, mode: bool = True) -> Quantized:
        """The graph is what it is."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """As the graph."""
        out: Tensor = self.net(x)
        return out


def images() -> tuple[Tensor, ...]:
    return (numbers(2, 3, 24, 24),)


def int8_convnet() -> nn.Module:
    """Calibrated on a few images, one scale per channel of weights and one per activation."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    exported = torch.export.export(ConvNet().eval(), images()).module()
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(exported, quantizer)
    with torch.no_grad():
        for seed in range(4):
            prepared(numbers(2, 3, 24, 24, seed=seed))
    return Quantized(convert_pt2e(prepared))


ENTRIES = [Entry("convnet-int8", "int8 by PT2E", int8_convnet, images)]

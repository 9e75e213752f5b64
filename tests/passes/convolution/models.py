"""Convolutions with what follows them in image models, for tests here and on a GPU."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution of images [batch, channels, *size], and what is behind it."""

    channels: int
    out_channels: int
    kernel: int | tuple[int, int]
    size: tuple[int, int] = (14, 11)
    batch: int = 1
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] = 0
    dilation: int | tuple[int, int] = 1
    groups: int = 1
    bias: bool = True
    norm: bool = False
    residual: bool = False
    relu: bool = False


# Small ones, for a processor.
LAYERS = {
    "plain": Layer(8, 16, 3, padding=1),
    "three channels": Layer(3, 16, 7, stride=2, padding=3, bias=False, norm=True, relu=True),
    "one pixel": Layer(16, 24, 1, bias=False),
    "relu": Layer(16, 8, 3, relu=True),
    "residual": Layer(16, 16, 3, batch=2, padding=1, norm=True, residual=True),
    "residual, relu": Layer(16, 16, 3, padding=1, bias=False, norm=True, residual=True, relu=True),
    "groups": Layer(16, 32, 3, padding=1, groups=4, relu=True),
    "strides": Layer(8, 8, (3, 5), stride=(2, 3), padding=(0, 2), batch=3),
    "dilated": Layer(8, 16, 3, padding=2, dilation=2, norm=True),
    "odd channels": Layer(5, 7, 3, padding=1, relu=True),
    "one channel": Layer(1, 4, 3),
}
# As they are in models, for a GPU: stages of ResNets, a wide one, ResNeXt.
LARGE = {
    "stem": Layer(3, 64, 7, (224, 224), stride=2, padding=3, bias=False, norm=True, relu=True),
    "first stage": Layer(64, 64, 3, (56, 56), padding=1, bias=False, norm=True, residual=True, relu=True),
    "smaller": Layer(64, 128, 3, (56, 56), stride=2, padding=1, bias=False, norm=True, relu=True),
    "beside": Layer(64, 128, 1, (56, 56), stride=2, bias=False, norm=True),
    "last stage": Layer(512, 512, 3, (7, 7), padding=1, bias=False, norm=True, residual=True, relu=True),
    "batch": Layer(128, 128, 3, (28, 28), batch=16, padding=1, relu=True),
    "many groups": Layer(128, 128, 3, (28, 28), padding=1, groups=32, norm=True, relu=True),
    "wide": Layer(256, 1024, 1, (14, 14), batch=4, relu=True),
}


class Convolved(nn.Module):
    """One layer; its residual is its second input."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer
        self.conv = nn.Conv2d(
            layer.channels,
            layer.out_channels,
            layer.kernel,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            layer.bias,
        )
        self.norm: nn.Module = nn.BatchNorm2d(layer.out_channels) if layer.norm else nn.Identity()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[batch, out_channels, ...]."""
        x = self.norm(self.conv(x))
        x = x if residual is None else x + residual
        return F.relu(x) if self.layer.relu else x


class AllOf(nn.Module):
    """Several layers in one program, each with inputs of its own."""

    def __init__(self, layers: dict[str, Layer], dtype: torch.dtype) -> None:
        super().__init__()
        self.names = list(layers)
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.parts = nn.ModuleList(Convolved(layer) for layer in layers.values())
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                nn.init.normal_(module.weight, 1, 0.2, generator=generator)
                nn.init.normal_(module.bias, generator=generator)
                module.running_mean.normal_(0, 0.5, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
        self.eval().requires_grad_(False).to(dtype)
        self._inputs = [self._make(part, dtype, generator) for part in self.parts]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Of all layers, one after another."""
        return tuple(value for values in self._inputs for value in values)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """A result for each layer."""
        given = iter(inputs)
        return tuple(
            part(*(next(given) for _ in values)) for part, values in zip(self.parts, self._inputs, strict=True)
        )

    def check(self, results: Any, tolerance: float) -> dict[str, float]:
        """Asserts that results are those of fp64, relative to their norm; returns each error."""
        exact = [
            part.double()(*(value.double() for value in values))
            for part, values in zip(self.parts, self._inputs, strict=True)
        ]
        errors = {}
        for name, got, wanted in zip(self.names, results, exact, strict=True):
            assert got.shape == wanted.shape, name
            errors[name] = float((got.double() - wanted).norm() / wanted.norm())
        worst = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float("inf"))
        assert errors[worst] <= tolerance, f"{worst}: a relative error of {errors[worst]:.2e}"
        return errors

    @staticmethod
    def _make(part: nn.Module, dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, ...]:
        assert isinstance(part, Convolved)
        layer = part.layer
        x = torch.randn(layer.batch, layer.channels, *layer.size, generator=generator).to(dtype)
        if not layer.residual:
            return (x,)
        return (x, torch.randn(part(x).shape, generator=generator).to(dtype))


# Relative to fp64: weights with a norm folded into them are rounded once more.
TOLERANCE = {torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2, torch.float32: 1e-5}

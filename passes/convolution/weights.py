"""Weights of convolutions that are made of a program's: scaled by a norm behind, and with channels innermost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from etcuda.passes.graph.recipes import Recipe, pieces_of


@dataclasses.dataclass(frozen=True)
class Norm:
    """A batch norm of fixed statistics: ``(x - mean) / sqrt(var + eps) * weight + bias``, a number a channel each."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    var: Tensor
    eps: float

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those that there are."""
        return tuple(each for each in (self.weight, self.bias, self.mean, self.var) if each is not None)

    def scale(self) -> Tensor:
        """What a channel is multiplied by, [channels] fp64."""
        factor = (whole(self.var).double() + self.eps).rsqrt()
        return factor if self.weight is None else factor * whole(self.weight).double()


@dataclasses.dataclass(frozen=True, eq=False)
class ScaledFilters(Recipe):
    """Filters [O, ...] that give what a norm behind them would: computed in fp64, rounded once."""

    filters: Tensor
    norm: Norm

    @property
    def shape(self) -> torch.Size:
        """That of the filters."""
        return self.filters.shape

    @property
    def dtype(self) -> torch.dtype:
        """Likewise."""
        return self.filters.dtype

    def pieces(self) -> Iterator[Tensor]:
        """All of them."""
        scale = self.norm.scale().reshape(-1, *[1] * (self.filters.dim() - 1))
        yield (whole(self.filters).double() * scale).to(self.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class ScaledBias(Recipe):
    """The bias [O] of a convolution and of a norm behind it, in the dtype of its filters."""

    bias: Tensor | None
    norm: Norm
    dtype_: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """A number a channel."""
        return self.norm.mean.shape

    @property
    def dtype(self) -> torch.dtype:
        """That of the filters."""
        return self.dtype_

    def pieces(self) -> Iterator[Tensor]:
        """All of it."""
        shifted = -whole(self.norm.mean).double()
        if self.bias is not None:
            shifted = shifted + whole(self.bias).double()
        result = shifted * self.norm.scale()
        if self.norm.bias is not None:
            result = result + whole(self.norm.bias).double()
        yield result.to(self.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelsInnermost(Recipe):
    """Filters [O, KH, KW, channels] of filters [O, C, KH, KW]; zeros for channels behind C."""

    filters: Tensor
    channels: int

    @property
    def shape(self) -> torch.Size:
        """[O, KH, KW, channels]."""
        out_channels, _, rows, columns = self.filters.shape
        return torch.Size((out_channels, rows, columns, self.channels))

    @property
    def dtype(self) -> torch.dtype:
        """That of the filters."""
        return self.filters.dtype

    def pieces(self) -> Iterator[Tensor]:
        """All of them."""
        innermost = whole(self.filters).permute(0, 2, 3, 1)
        padding = self.channels - innermost.shape[3]
        yield torch.nn.functional.pad(innermost, (0, padding)).contiguous()


def whole(tensor: Tensor) -> Tensor:
    """A weight with its bytes, made if it is yet to be made."""
    pieces = list(pieces_of(tensor))
    return (pieces[0] if len(pieces) == 1 else torch.cat([piece.flatten() for piece in pieces])).reshape(tensor.shape)

"""Models that call our own kernels, one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

import etcuda.kernels  # noqa: F401  registers the kernels
from etcuda.kernels.common.registry import KernelRecord, records

Call = tuple[KernelRecord, Mapping[str, Any]]


class KernelCalls(torch.nn.Module):
    """Takes the tensors of all calls; returns their floating results."""

    def __init__(self, calls: Iterable[Call]) -> None:
        super().__init__()
        self.calls = list(calls)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Each a tensor of its own memory, in order, as ExecuTorch takes them."""
        values = (value for _, arguments in self.calls for value in arguments.values())
        return tuple(
            value.clone(memory_format=torch.contiguous_format) for value in values if isinstance(value, Tensor)
        )

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        found: list[Tensor] = []
        for record, arguments in self.calls:
            values = {name: _laid_out(next(given), v) if isinstance(v, Tensor) else v for name, v in arguments.items()}
            result = record.overload(**values)
            found += [result] if isinstance(result, Tensor) else list(result)
        return tuple(result for result in found if result.is_floating_point() and result.numel())

    def expected(self) -> list[Tensor]:
        """The same by the references."""
        found: list[Tensor] = []
        for record, arguments in self.calls:
            result = record.compute(arguments)
            found += [result] if isinstance(result, Tensor) else list(result)
        return [result for result in found if result.is_floating_point() and result.numel()]


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """Channels last where the sample has them so: ExecuTorch hands over dense tensors in order."""
    if like.is_contiguous() or not like.is_contiguous(memory_format=torch.channels_last):
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


def all_calls() -> list[Call]:
    """Every sample of every record."""
    return [(record, sample) for record in records() for sample in record.samples("cpu")]

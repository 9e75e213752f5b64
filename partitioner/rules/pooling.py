"""Average and adaptive pooling: generated up to a window of 25 elements."""

from __future__ import annotations

import math
from typing import Any

import torch

from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.base import Rule, library_call

aten = torch.ops.aten

_WINDOW = 25  # of Inductor's own choosing


def _listed(value: Any, dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value) * (dims if len(value) == 1 else 1)


class AveragePoolRule(Rule):
    """A larger window is claimed only if windows do not overlap."""

    ops = (aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses large overlapping windows."""
        dims = int(view.op._schema.name[-2])
        kernel = _listed(view.arguments["kernel_size"], dims)
        stride = _listed(view.arguments["stride"] or kernel, dims)
        if math.prod(kernel) <= _WINDOW or kernel == stride:
            return None
        because = f"overlapping windows of up to {_WINDOW} elements, got kernel {kernel} and stride {stride}"
        return library_call(view, because, kernel=kernel, stride=stride)


class AdaptivePoolRule(Rule):
    """Claimed for static sizes that divide, or whose windows are small."""

    ops = (aten._adaptive_avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_max_pool2d.default)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses symbolic sizes and large uneven windows."""
        sizes = list(next(view.input_tensors).shape[-2:])
        results = list(view.arguments["output_size"])
        if any(isinstance(size, torch.SymInt) for size in sizes):
            return Refusal(f"adaptive pooling would be fixed to one size, got a dynamic one, {sizes}", {"sizes": sizes})
        if 0 in results or all(size % result == 0 for size, result in zip(sizes, results, strict=True)):
            return None
        window = math.prod(-(-(size + result - 1) // result) for size, result in zip(sizes, results, strict=True))
        if window <= _WINDOW:
            return None
        because = f"adaptive pooling takes windows of up to {_WINDOW} elements or even ones, got {sizes} to {results}"
        return library_call(view, because, sizes=sizes, output_size=results)

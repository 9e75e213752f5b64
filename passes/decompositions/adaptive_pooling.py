"""Average and maximum of as many windows as are asked for, one dimension after the other."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from etcuda.passes.decompositions.record import Arguments, Decomposition, accumulator, existing
from etcuda.passes.decompositions.windows import Size

aten = torch.ops.aten


def adaptive_avg_pool(x: Tensor, output_size: list[Size]) -> Tensor:
    """Sums along each of the last dimensions, as many as ``output_size`` has numbers, then one division."""
    if _is_empty(x, output_size):
        return x.new_zeros([*x.shape[: -len(output_size)], *output_size])
    sums = x.to(accumulator(x.dtype))
    for dim, count in zip(range(-len(output_size), 0), output_size, strict=True):
        elements, inside, _ = _windows(sums, dim, count, 0)
        lengths = x.shape[dim] // count if inside is None else inside.sum(-1).reshape(-1, *[1] * (-dim - 1))
        sums = elements.sum(-1) / lengths
    return sums.to(x.dtype)


def adaptive_max_pool(x: Tensor, output_size: list[Size]) -> tuple[Tensor, Tensor]:
    """The greatest element of each window, and its place in the flattened last dimensions.

    Along the last dimension first, so that the first of equal elements is found, as in eager.
    """
    if _is_empty(x, output_size):
        sizes = [*x.shape[: -len(output_size)], *output_size]
        return x.new_zeros(sizes), x.new_zeros(sizes, dtype=torch.int64)
    lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    found: Tensor | None = None
    step: Any = 1
    for dim, count in reversed(list(zip(range(-len(output_size), 0), output_size, strict=True))):
        size = x.shape[dim]
        elements, _, starts = _windows(x, dim, count, lowest)
        x, at = elements.max(-1)
        here = at + starts.reshape(-1, *[1] * (-dim - 1))
        if found is None:
            found = here
        else:
            inner, _, _ = _windows(found, dim, count, 0)
            found = here * step + inner.gather(-1, at.unsqueeze(-1)).squeeze(-1)
        step = step * size
    assert found is not None
    return x, found


def _is_empty(x: Tensor, output_size: list[Size]) -> bool:
    """PyTorch takes an empty batch, and channels and windows of no number; then there is no result to compute."""
    return any(isinstance(size, int) and size == 0 for size in (*x.shape, *output_size))


def _windows(x: Tensor, dim: int, count: Size, fill: float | int) -> tuple[Tensor, Tensor | None, Tensor]:
    """The windows' elements in a new last dimension; which of them are inside, ``None`` for all; [count]: the starts.

    Window ``i`` goes from ``floor(i * size / count)`` to ``ceil((i + 1) * size / count)``.
    """
    size = x.shape[dim]
    at = torch.arange(count, device=x.device)
    if isinstance(size, int) and isinstance(count, int) and size % count == 0:
        length = size // count
        return x.unfold(dim, length, length), None, at * length
    starts = at * size // count
    lengths = ((at + 1) * size + count - 1) // count - starts
    offsets = torch.arange(_longest(size, count), device=x.device)
    inside = offsets < lengths.unsqueeze(-1)
    places = (starts.unsqueeze(-1) + offsets).clamp_max(size - 1)
    elements = aten._unsafe_index.Tensor(x.movedim(dim, -1), [*[None] * (x.dim() - 1), places])
    elements = torch.where(inside, elements, fill).movedim(-2, dim - 1)
    return elements, inside, starts


def _longest(size: Size, count: Size) -> Size:
    """A bound of the windows' lengths; the greatest of them for fixed sizes."""
    if isinstance(size, int) and isinstance(count, int):
        return max(-(-(i + 1) * size // count) - i * size // count for i in range(count))
    return (size + count - 1) // count + 1


def _refuse_dtype(given: Arguments) -> str | None:
    dtype = given["self"].dtype
    return None if dtype.is_floating_point else f"average pooling takes floating dtypes, got {dtype}"


DECOMPOSITIONS = (
    Decomposition(
        existing(aten, "adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
        adaptive_avg_pool,
        refuse=_refuse_dtype,
    ),
    Decomposition(existing(aten, "adaptive_max_pool2d", "adaptive_max_pool3d"), adaptive_max_pool),
)

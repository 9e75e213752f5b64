"""Binary search, and what follows from it: repeats, histograms, places of what is not zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from etcuda.passes.library.scans import cumsum
from etcuda.torch_private import bounds

aten = torch.ops.aten


def search(host: bool, sequence: Tensor, values: Tensor, right: bool = False, **options: Any) -> Tensor:
    """How many elements of each row of a sequence (..., n), or of one (n), go before each of ``values`` (..., m).

    On a GPU these are steps of a binary search where the length has a bound: Inductor's own search is of rows that are
    inputs of a kernel, and Triton 3.6 does not compile it.
    """
    sequence = sequence.contiguous()
    if not host and (bound := _bound(sequence.shape[-1])) is not None:
        return _by_steps(sequence, values, bound, right, **options)
    found: Tensor = aten.searchsorted.Tensor(sequence, values, right=right, **options)
    return found


def _by_steps(
    sequence: Tensor, values: Tensor, bound: int, right: bool, out_int32: bool = False, sorter: Tensor | None = None
) -> Tensor:
    """Halves what is left as PyTorch does: where NaNs are among the elements, what is asked decides."""
    first = torch.zeros_like(values, dtype=torch.int64)
    end = torch.full_like(first, sequence.shape[-1])
    for _ in range(bound.bit_length()):
        middle = (first + end) // 2
        # Of those that are found the middle is the end, which may be that of the sequence.
        place = torch.where(first < end, middle, 0)
        if sorter is not None:
            place = _at(sorter, place)
        element = _at(sequence, place)
        before = ~(element > values if right else element >= values)
        first, end = (
            torch.where((first < end) & before, middle + 1, first),
            torch.where((first < end) & ~before, middle, end),
        )
    return first.to(torch.int32) if out_int32 else first


def _bound(length: int | torch.SymInt) -> int | None:
    """``None`` where there is none, and where there may be no element that a step could read."""
    least, most = bounds(length)
    return most if length == 0 or least > 0 else None


def _at(rows: Tensor, places: Tensor) -> Tensor:
    if rows.dim() > 1:
        return rows.gather(-1, places)
    return rows.index_select(0, places.reshape(-1)).reshape(places.shape)


def searchsorted(
    host: bool,
    sorted_sequence: Tensor,
    self: Tensor,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """How many elements of a sequence go before each value."""
    order = None if sorter is None else sorter.contiguous()
    return search(host, sorted_sequence, self, right or side == "right", out_int32=out_int32, sorter=order)


def searchsorted_scalar(host: bool, sorted_sequence: Tensor, self: float, **options: Any) -> Tensor:
    """Of one value, in the dtype of the sequence."""
    value = torch.full([], self, dtype=sorted_sequence.dtype, device=sorted_sequence.device)
    return searchsorted(host, sorted_sequence, value, **options)


def bucketize(host: bool, self: Tensor, boundaries: Tensor, out_int32: bool = False, right: bool = False) -> Tensor:
    """Binary search in one sequence."""
    return searchsorted(host, boundaries, self, out_int32, right)


def bucketize_scalar(
    host: bool, self: float, boundaries: Tensor, out_int32: bool = False, right: bool = False
) -> Tensor:
    """Of one value, in the dtype of the boundaries."""
    return searchsorted_scalar(host, boundaries, self, out_int32=out_int32, right=right)


def repeat_interleave(host: bool, repeats: Tensor, output_size: int | torch.SymInt | None = None) -> Tensor:
    """Each index as often as ``repeats`` says: the first whose repeats, added up, exceed the place."""
    assert output_size is not None  # its size would depend on data
    place = torch.arange(output_size, device=repeats.device)
    return searchsorted(host, cumsum(host, repeats, 0), place, right=True).to(repeats.dtype)


def nonzero_static(host: bool, self: Tensor, size: int, fill_value: int = -1) -> Tensor:
    """(size, rank): places of what is not zero, the rest filled."""
    if self.dim() == 0 or _is_empty(self) or size == 0:
        return torch.full([size, self.dim()], fill_value, dtype=torch.int64, device=self.device)
    counts = cumsum(host, (self != 0).reshape(-1), 0)
    rank = torch.arange(1, size + 1, device=self.device)
    flat = searchsorted(host, counts, rank)
    found = rank <= counts[-1]
    places = []
    for length in reversed(self.shape):
        places.append(flat % length)
        flat = flat // length
    return torch.where(found[:, None], torch.stack(places[::-1], -1), fill_value)


def masked_scatter(host: bool, self: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """The next element of ``source`` wherever the mask is set."""
    both: tuple[Tensor, Tensor] = torch.broadcast_tensors(self, mask)  # type: ignore[no-untyped-call]
    x, mask = both
    if _is_empty(x) or _is_empty(source):
        return x.clone()
    place = cumsum(host, mask.reshape(-1), 0) - 1
    values = source.reshape(-1)
    picked = values[place.clamp(0, values.shape[0] - 1)].reshape(x.shape)
    return torch.where(mask, picked, x)


def histc(host: bool, self: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    """Counts in bins of equal width; between the extremes of the data where ``min`` is ``max``."""
    exact = torch.float64 if self.dtype in (torch.float64, torch.int32, torch.int64) else torch.float32
    x = self.reshape(-1).to(exact)
    least: Any = min
    greatest: Any = max
    if min == max:
        if _is_empty(self):
            return torch.zeros([bins], dtype=self.dtype, device=self.device)
        least, greatest = x.amin(), x.amax()
        one = least == greatest
        least, greatest = torch.where(one, least - 1, least), torch.where(one, greatest + 1, greatest)
    inside = (x >= least) & (x <= greatest)
    bin_of = ((x - least) * bins / (greatest - least)).to(torch.int64).clamp(0, bins - 1)
    # Those outside go to a bin more.
    place = torch.where(inside, bin_of, bins)
    counts = torch.zeros([bins + 1], dtype=torch.int32, device=self.device)
    counted: Tensor = aten.scatter_add.default(counts, 0, place, torch.ones_like(place, dtype=torch.int32))
    return counted[:bins].to(self.dtype)


def _is_empty(x: Tensor) -> bool:
    return any(isinstance(size, int) and size == 0 for size in x.shape)

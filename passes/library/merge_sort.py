"""Order of rows of any length, for the GPU: short runs that Inductor sorts, then merges by rank, or a tournament.

Every kernel is one that Inductor generates. A merge places each element of two sorted runs at its own place in its run
plus the number of elements of the other that go before it, which is a binary search (the rank-based merge; Satish,
Harris and Garland, "Designing efficient sorting algorithms for manycore GPUs", 2009). A key carries its index, or has
it in a tensor beside it where it takes 64 bits.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from etcuda.passes.library.keys import LAST, is_wide, ordered_keys, packed_indices, packed_keys
from etcuda.passes.library.search import search

aten = torch.ops.aten

RUN = 512  # elements that Inductor sorts within a block


@dataclasses.dataclass(frozen=True)
class Runs:
    """Keys (..., n), int64, and the indices that belong to them; ``None`` where the keys carry them."""

    keys: Tensor
    indices: Tensor | None

    @classmethod
    def of(cls, x: Tensor, descending: bool) -> Runs:
        """The unsorted rows of ``x`` (R, n)."""
        if not is_wide(x.dtype):
            return cls(packed_keys(x, descending), None)
        index = torch.arange(x.shape[-1], device=x.device).expand(x.shape)
        return cls(ordered_keys(x, descending), index)

    def order(self) -> Tensor:
        """The indices."""
        return packed_indices(self.keys) if self.indices is None else self.indices

    def padded(self, count: int | torch.SymInt) -> Runs:
        """``count`` more elements at the end of each row, which go behind all others."""
        padding = [0, count]
        indices = None if self.indices is None else aten.constant_pad_nd.default(self.indices, padding, 0)
        return Runs(aten.constant_pad_nd.default(self.keys, padding, LAST), indices)

    def view(self, *shape: int | torch.SymInt) -> Runs:
        """Both in another shape."""
        return Runs(self.keys.reshape(shape), None if self.indices is None else self.indices.reshape(shape))

    def first(self, count: int | torch.SymInt) -> Runs:
        """The first ``count`` of each row."""
        return Runs(self.keys[..., :count], None if self.indices is None else self.indices[..., :count])

    def sorted(self) -> Runs:
        """Each row, of up to ``RUN`` elements, in order."""
        # Keys that carry their index are all different: without a tie to break, the kernel has no indices to move, and
        # compiles in a third of the time.
        carried = self.indices is None
        keys, places = aten.sort.stable(self.keys, stable=not carried, dim=-1, descending=False)
        return Runs(keys, None if self.indices is None else self.indices.gather(-1, places))


def order_of(x: Tensor, descending: bool, bound: int) -> Tensor:
    """Indices (R, n) of a stable sort of the rows of ``x`` (R, n), where n is at most ``bound``."""
    rows, length = x.shape
    merges = max(-(-bound // RUN) - 1, 0).bit_length()
    total = RUN << merges
    runs = Runs.of(x, descending).padded(total - length).view(rows, total // RUN, RUN).sorted()
    for level in range(merges):
        runs = _merged(runs, RUN << level)
    return runs.view(rows, total).order()[:, :length]


def first_of(x: Tensor, count: int, descending: bool, bound: int) -> Tensor:
    """The first ``count`` indices, (R, count), of a stable sort of the rows of ``x`` (R, n).

    A tournament: the first of every run of 512, then the first of those, until they are one run.

    Args:
        x: (R, n), of any dtype.
        count: at most 256, and at most n.
        descending: which end to take.
        bound: the most that n can be.
    """
    rows = x.shape[0]
    runs = Runs.of(x, descending)
    while bound > RUN:
        blocks = -(-bound // RUN)
        runs = runs.padded(blocks * RUN - runs.keys.shape[-1]).view(rows, blocks, RUN).sorted().first(count)
        bound = blocks * count
        runs = runs.view(rows, bound)
    return runs.sorted().first(count).order()


def _merged(runs: Runs, length: int) -> Runs:
    """Sorted runs of twice ``length`` from neighbours of ``length`` elements each."""
    pairs = runs.view(-1, 2, length)
    first, second = (pairs.keys[:, side].contiguous() for side in range(2))
    count = first.shape[0]
    place = torch.arange(length, device=first.device)
    # Of equal keys those of the first run go first.
    of_first = place + search(False, second, first)
    of_second = place + search(False, first, second, right=True)
    start = torch.arange(count, device=first.device)[:, None] * (2 * length)
    places = (torch.cat([of_first, of_second], -1) + start).reshape(-1)

    def placed(values: Tensor) -> Tensor:
        flat = values.reshape(-1)
        found: Tensor = aten.index_put.default(torch.zeros_like(flat), [places], flat)
        return found

    return Runs(placed(pairs.keys), None if pairs.indices is None else placed(pairs.indices))

"""How a weight that torchao quantised becomes one of our layouts: packed when its bytes are needed, and dropped."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from etcuda.passes.graph.recipes import Parts, Recipe, pieces_of
from etcuda.read_memory import CHUNK, read_memory


class Packing(Parts):
    """The stored tensors of our layout, made of integers [N, K] and their scales. Made once here, for what there is
    depends on the values: int4 or int8, scales of float16 or float32, with an offset or without.

    Args:
        stored: integers, scales, and zero points if there are any.
        block: rows and columns that share a scale.
        least: the least integer that there can be.
        most: the greatest.
        dtype: of the dequantised weight.
        name: of the weight, for messages.

    Attributes:
        parts: shape and dtype of each stored tensor, by name.

    Raises:
        WeightFormatError: no layout of ours holds the weight.
    """

    def __init__(
        self, stored: tuple[Tensor, ...], block: tuple[int, int], least: int, most: int, dtype: torch.dtype, name: str
    ) -> None:
        super().__init__()
        self._stored, self._block, self._least, self._most = stored, block, least, most
        self._dtype, self._name = dtype, name
        self.parts = {part: (made.shape, made.dtype) for part, made in self.make().items()}

    def make(self) -> dict[str, Tensor]:
        """The stored tensors."""
        # Here, for it brings torchao with it.
        from etcuda.kernels.weights.convert import Affine, from_affine

        integers, scale, *zero = self._stored
        n, k = integers.shape
        blocks = (n // self._block[0], k // self._block[1])
        affine = Affine(
            (n, k),
            _Rows(integers).read,
            self._least,
            self._most,
            scale.reshape(blocks),
            zero[0].reshape(blocks) if zero else None,
            None,
            self._dtype,
        )
        return dict(from_affine(affine, self._name).components)


class _Rows:
    """Reads rows of integers [N, K] in order, some MiB at a time, and leaves a mapped file where it is."""

    def __init__(self, integers: Tensor) -> None:
        self._integers = integers
        self._first, self._window = 0, integers[:0]
        row = integers.shape[1] * integers.itemsize
        self._step = max(1, CHUNK // row)
        # Where it lies otherwise. A small one is not worth asking what is mapped there.
        self._reads = integers.device.type == "cpu" and integers.is_contiguous() and row * self._step <= integers.nbytes

    def read(self, start: int, stop: int) -> Tensor:
        """The rows from ``start`` to ``stop``, good until the next call."""
        if not self._reads:
            return self._integers[start:stop]
        if start < self._first or stop > self._first + len(self._window):
            rows = self._integers[start : max(stop, start + self._step)]
            data = b"".join(map(bytes, read_memory(rows.data_ptr(), rows.nbytes)))
            self._first = start
            self._window = torch.frombuffer(bytearray(data), dtype=rows.dtype).reshape(rows.shape)
        return self._window[start - self._first : stop - self._first]


@dataclasses.dataclass(frozen=True, eq=False)
class PackedPart(Recipe):
    """One stored tensor of a packed weight."""

    packing: Packing
    part: str

    @property
    def shape(self) -> torch.Size:
        """Sizes of the stored tensor."""
        return self.packing.parts[self.part][0]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the stored tensor."""
        return self.packing.parts[self.part][1]

    def pieces(self) -> Iterator[Tensor]:
        """The stored tensor."""
        yield from pieces_of(self.packing.take(self.part))

"""The layout of int8 weights; README.md has the bits per weight."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from etcuda.errors import WeightFormatError
from etcuda.kernels.formats.base import MINIMUM, SYMMETRIC, Component, GroupFormat, check_integers

GROUP_SIZES = (16, 32, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Int8Format(GroupFormat):
    """Format of an int8 weight [N, K], integers -128 to 127.

    Stored: ``qdata`` int8 [N, K] row by row; scales and offsets as ``GroupFormat`` says, without zero points.
    Symmetric is value = scale * q. A group is 16, 32, 64, 128 or 256 weights, or the whole row (``group_size`` = K).
    Groups of 16 are those of GGUF's Q6_K, minima with codes those of Q5_K.

    Raises:
        WeightFormatError: as in ``GroupFormat``; the group size is checked against K by ``check_size``.
    """

    bits: ClassVar[int] = 8
    center: ClassVar[int] = 0
    group_sizes: ClassVar[tuple[int, ...]] = GROUP_SIZES
    offsets: ClassVar[tuple[str, ...]] = (SYMMETRIC, MINIMUM)

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise WeightFormatError(f"Int8Format: group_size: expected a positive number, got {self.group_size!r}.")
        super().__post_init__()

    @staticmethod
    def pack(q: Tensor) -> Tensor:
        """Integers -128 to 127, any integer dtype [..., K], into int8 [..., K].

        Raises:
            WeightFormatError: another dtype, or an integer that does not fit.
        """
        check_integers(q, -128, 127)
        return q.to(torch.int8)

    @staticmethod
    def unpack(qdata: Tensor) -> Tensor:
        """Integers int8 [..., K]: as they are stored."""
        return qdata

    def _whole_row(self, k: int) -> bool:
        return self.group_size == k

    def _qdata(self, n: int, k: int) -> Component:
        return (n, k), torch.int8

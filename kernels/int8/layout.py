"""The layout of int8 weights; README.md has the bits per weight."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from etcuda.errors import WeightFormatError
from etcuda.kernels.groups import MINIMUM, SYMMETRIC, Component, GroupFormat, kind_of

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

    @classmethod
    def of(
        cls,
        group_size: int,
        scale: Tensor,
        zero: Tensor | None,
        scale_step: Tensor | None,
        zero_step: Tensor | None,
    ) -> Int8Format:
        """The format of stored tensors, told from which there are and their dtypes."""
        storage, offset = kind_of(scale, zero, scale_step, zero_step)
        return cls(group_size, storage, offset)

    def dequantize(
        self,
        qdata: Tensor,
        scale: Tensor,
        zero: Tensor | None = None,
        scale_step: Tensor | None = None,
        zero_step: Tensor | None = None,
    ) -> Tensor:
        """Values float32 [N, K] of stored tensors, rounded at most once."""
        return self.from_integers(qdata, scale, zero, scale_step, zero_step)

    def _whole_row(self, k: int) -> bool:
        return self.group_size == k

    def _qdata(self, n: int, k: int) -> Component:
        return (n, k), torch.int8

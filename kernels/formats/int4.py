"""The layout of int4 weights; README.md has the picture and the bits per weight."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from etcuda.errors import WeightFormatError
from etcuda.kernels.formats.base import BLOCK, MINIMUM, SYMMETRIC, ZERO_POINT, Component, GroupFormat, check_integers

GROUP_SIZES = (32, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Int4Format(GroupFormat):
    """Format of an int4 weight [N, K], integers 0 to 15.

    Stored: ``qdata`` uint8 [N, K / 2], where byte i of the 16 bytes of a block of 32 weights holds weight i in its low
    half and weight 16 + i in its high one; scales and offsets as ``GroupFormat`` says. Symmetric is
    value = scale * (q - 8).

    Raises:
        WeightFormatError: the group size is not one of 32, 64, 128, 256, or as in ``GroupFormat``.
    """

    bits: ClassVar[int] = 4
    center: ClassVar[int] = 8
    group_sizes: ClassVar[tuple[int, ...]] = GROUP_SIZES
    offsets: ClassVar[tuple[str, ...]] = (SYMMETRIC, ZERO_POINT, MINIMUM)

    def __post_init__(self) -> None:
        if self.group_size not in GROUP_SIZES:
            known = ", ".join(map(str, GROUP_SIZES))
            raise WeightFormatError(f"Int4Format: group_size: expected one of {known}, got {self.group_size!r}.")
        super().__post_init__()

    @staticmethod
    def pack(q: Tensor) -> Tensor:
        """Integers 0 to 15, any integer dtype [..., K], K a multiple of 32, into bytes uint8 [..., K / 2].

        Raises:
            WeightFormatError: another dtype, K, or an integer that does not fit.
        """
        if q.dim() == 0 or q.shape[-1] == 0 or q.shape[-1] % BLOCK:
            raise WeightFormatError(f"pack: expected K to be a multiple of {BLOCK}, got shape {list(q.shape)}.")
        check_integers(q, 0, 15)
        blocks = q.to(torch.uint8).reshape(*q.shape[:-1], q.shape[-1] // BLOCK, 2, BLOCK // 2)
        return (blocks[..., 0, :] | (blocks[..., 1, :] << 4)).flatten(-2)

    @staticmethod
    def unpack(qdata: Tensor) -> Tensor:
        """Bytes uint8 [..., K / 2] into integers uint8 [..., K]; the inverse of ``pack``, traceable."""
        blocks = qdata.reshape(*qdata.shape[:-1], qdata.shape[-1] * 2 // BLOCK, 1, BLOCK // 2)
        # Compilers make one loop of this; joining two halves would be a copy.
        shifts = torch.arange(0, 8, 4, dtype=torch.uint8, device=qdata.device).unsqueeze(-1)
        return ((blocks >> shifts) & 0xF).flatten(-3)

    def _qdata(self, n: int, k: int) -> Component:
        return (n, k // 2), torch.uint8

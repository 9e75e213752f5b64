"""int8 weights. README.md has the bits per weight."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from etcuda.kernels.formats.base import MINIMUM, SYMMETRIC, GroupFormat, check_integers
from etcuda.kernels.formats.registry import WeightFormat, register


@dataclasses.dataclass(frozen=True)
class Int8Format(GroupFormat):
    """Format of an int8 weight [*, N, K], integers -128 to 127.

    Stored: ``qdata`` int8 [*, N, K] row by row; scales and offsets as ``GroupFormat`` says, without zero points.
    Symmetric is value = scale * q. A group is 16, 32, 64, 128 or 256 weights, or the whole row (``group_size`` = K).
    Groups of 16 are those of GGUF's Q6_K, minima with scale codes those of Q5_K.

    Raises:
        WeightFormatError: as in ``GroupFormat``; the group size is checked against K by ``check_size``.
    """

    name: ClassVar[str] = "int8"
    bits: ClassVar[int] = 8
    stored_dtype: ClassVar[torch.dtype] = torch.int8
    integers: ClassVar[tuple[int, int]] = (-128, 127)
    # -128 is left out, so that a weight and its negative have the same magnitude.
    quantized_integers: ClassVar[tuple[int, int]] = (-127, 127)
    center: ClassVar[int] = 0
    group_sizes: ClassVar[tuple[int, ...]] = (16, 32, 64, 128, 256)
    whole_rows: ClassVar[bool] = True
    offsets: ClassVar[tuple[str, ...]] = (SYMMETRIC, MINIMUM)
    quantized_offsets: ClassVar[tuple[str, ...]] = (SYMMETRIC,)

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


INT8 = register(
    WeightFormat(
        owner=__name__,
        format_type=Int8Format,
        tensor="etcuda.kernels.weights.int8_tensor:Int8CoalescedTensor",
        kernels=frozenset({"matvec", "matmul"}),
    )
)

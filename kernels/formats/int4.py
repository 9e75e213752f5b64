"""int4 weights. README.md has the picture and the bits per weight."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from etcuda.errors import WeightFormatError
from etcuda.kernels.formats.base import BLOCK, MINIMUM, SYMMETRIC, ZERO_POINT, GroupFormat, check_integers
from etcuda.kernels.formats.registry import WeightFormat, register


@dataclasses.dataclass(frozen=True)
class Int4Format(GroupFormat):
    """Format of an int4 weight [*, N, K], integers 0 to 15.

    Stored: ``qdata`` uint8 [*, N, K / 2], where byte i of the 16 bytes of a block of 32 weights holds weight i in its
    low half and weight 16 + i in its high one; scales and offsets as ``GroupFormat`` says. Symmetric is
    value = scale * (q - 8).

    Raises:
        WeightFormatError: the group size is not one of 32, 64, 128, 256, or as in ``GroupFormat``.
    """

    name: ClassVar[str] = "int4"
    bits: ClassVar[int] = 4
    stored_dtype: ClassVar[torch.dtype] = torch.uint8
    integers: ClassVar[tuple[int, int]] = (0, 15)
    quantized_integers: ClassVar[tuple[int, int]] = (0, 15)
    center: ClassVar[int] = 8
    group_sizes: ClassVar[tuple[int, ...]] = (32, 64, 128, 256)
    offsets: ClassVar[tuple[str, ...]] = (SYMMETRIC, ZERO_POINT, MINIMUM)
    quantized_offsets: ClassVar[tuple[str, ...]] = (SYMMETRIC, ZERO_POINT, MINIMUM)

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


INT4 = register(
    WeightFormat(
        owner=__name__,
        format_type=Int4Format,
        tensor="etcuda.kernels.weights.int4_tensor:Int4CoalescedTensor",
        kernels=frozenset({"matvec", "matmul", "hopper_gemm"}),
        tuned_offset=ZERO_POINT,
        tuned_shapes="all",
    )
)

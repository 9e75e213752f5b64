"""``Int4CoalescedTensor``: an int4 weight as a tensor subclass."""

from __future__ import annotations

from typing import ClassVar

import torch

from etcuda.kernels.formats.int4 import Int4Format
from etcuda.kernels.weights.tensor import CoalescedTensor


class Int4CoalescedTensor(CoalescedTensor):
    """An int4 weight [*, N, K] in the layout of ``kernels/formats/README.md``.

    Tensor data:
        qdata: uint8 [*, N, K / 2], blocks of 32 weights in 16 bytes, weights i and 16 + i of a block in byte i.
        scale: float16 or float32 [*, N, G], or scale codes uint8 [*, N, G]; G = K / group_size.
        zero: ``None``, zero points uint8 [*, N, G], minima [*, N, G] in the dtype of ``scale``, or their codes uint8
            [*, N, G].
        scale_step, zero_step: float16 [*, N, K / 256], with codes; else ``None``.

    Attributes and errors are those of ``CoalescedTensor``.
    """

    format_type: ClassVar[type[Int4Format]] = Int4Format


# A checkpoint that holds it loads with weights_only=True; so does one that names it as it was called before.
torch.serialization.add_safe_globals(
    [Int4CoalescedTensor, (Int4CoalescedTensor, "etcuda.kernels.int4.tensor.Int4CoalescedTensor")]
)

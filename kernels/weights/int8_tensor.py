"""``Int8CoalescedTensor``: an int8 weight as a tensor subclass."""

from __future__ import annotations

from typing import ClassVar

import torch

from etcuda.kernels.formats.int8 import Int8Format
from etcuda.kernels.weights.tensor import CoalescedTensor


class Int8CoalescedTensor(CoalescedTensor):
    """An int8 weight [*, N, K] in the layout of ``kernels/formats/README.md``.

    Tensor data:
        qdata: int8 [*, N, K].
        scale: float16 or float32 [*, N, G], or scale codes uint8 [*, N, G]; G = K / group_size.
        zero: ``None``, minima [*, N, G] in the dtype of ``scale``, or their codes uint8 [*, N, G].
        scale_step, zero_step: float16 [*, N, K / 256], with codes; else ``None``.

    Attributes and errors are those of ``CoalescedTensor``.
    """

    format_type: ClassVar[type[Int8Format]] = Int8Format


# A checkpoint that holds it loads with weights_only=True; so does one that names it as it was called before.
torch.serialization.add_safe_globals(
    [Int8CoalescedTensor, (Int8CoalescedTensor, "etcuda.kernels.int8.tensor.Int8CoalescedTensor")]
)

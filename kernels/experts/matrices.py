"""``Matrices``: the weights of all experts, quantised or as they are."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from etcuda.kernels.common.memory import aligned
from etcuda.kernels.experts.problem import format_of
from etcuda.kernels.formats.base import GroupFormat
from etcuda.kernels.formats.stored import StoredWeight


@dataclasses.dataclass(frozen=True)
class Matrices:
    """Weights [num_experts, N, K]; what their format does not have is ``None``.

    Attributes:
        format: of stored weights; ``None`` of weights as they are.
        weight: the integers, or the weights.
        scale, zero, scale_step, zero_step: as in ``GroupFormat``.
        bias: [num_experts, N] floating.
    """

    format: GroupFormat | None
    weight: Tensor
    scale: Tensor | None = None
    zero: Tensor | None = None
    scale_step: Tensor | None = None
    zero_step: Tensor | None = None
    bias: Tensor | None = None

    @classmethod
    def of(
        cls, weight: Tensor, scale: Tensor | None, zero: Tensor | None, scale_step: Tensor | None,
        zero_step: Tensor | None, bias: Tensor | None, group_size: int,
    ) -> Matrices:  # fmt: skip
        """The weights that stored tensors are."""
        stored = format_of(weight, scale, zero, scale_step, zero_step, group_size)
        return cls(stored, weight, scale, zero, scale_step, zero_step, bias)

    @property
    def stored(self) -> StoredWeight:
        """Of quantised weights: the stored tensors."""
        assert self.format is not None
        assert self.scale is not None
        return StoredWeight(self.format, self.weight, self.scale, self.zero, self.scale_step, self.zero_step)

    @property
    def n(self) -> int:
        """Rows of a matrix."""
        return self.weight.shape[1]

    @property
    def k(self) -> int:
        """Columns of a matrix."""
        return self.weight.shape[2] * (1 if self.format is None else 8 // self.format.bits)

    @property
    def tensors(self) -> list[Tensor]:
        """What kernels take, dense and aligned; another tensor stands in for what is absent."""
        stand_in = self.weight if self.scale is None else self.scale
        given = (self.weight, self.scale, self.zero, self.scale_step, self.zero_step, self.bias)
        return [aligned((stand_in if each is None else each).contiguous(), 16) for each in given]

    @property
    def constants(self) -> dict[str, object]:
        """What kernels are compiled for."""
        if self.format is None:
            bits = self.weight.dtype.itemsize * 8
            return {
                "K": self.k, "BITS": bits, "GROUP": 32, "OFFSET": "symmetric", "SCALE_CODES": False,
                "HAS_BIAS": self.bias is not None,
            }  # fmt: skip
        return {
            "K": self.k, "BITS": self.format.bits, "GROUP": min(self.format.group_size, self.k),
            "OFFSET": self.format.offset, "SCALE_CODES": self.format.scale_storage == "codes",
            "HAS_BIAS": self.bias is not None,
        }  # fmt: skip

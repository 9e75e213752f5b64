"""``StoredWeight``: the stored tensors of a weight, and their format."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from etcuda.kernels.formats.base import COMPONENTS, GroupFormat


@dataclasses.dataclass(frozen=True)
class StoredWeight:
    """A quantised weight [*, N, K] as operators take it apart; what its format does not have is ``None``.

    Attributes:
        format: says what the tensors are.
        qdata: the integers.
        scale, zero, scale_step, zero_step: as in ``GroupFormat``.
    """

    format: GroupFormat
    qdata: Tensor
    scale: Tensor
    zero: Tensor | None = None
    scale_step: Tensor | None = None
    zero_step: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """The stored tensors in the order in which operators take them."""
        return self.qdata, self.scale, self.zero, self.scale_step, self.zero_step

    @property
    def components(self) -> dict[str, Tensor | None]:
        """The stored tensors by name."""
        return dict(zip(COMPONENTS, self.tensors, strict=True))

    @property
    def n(self) -> int:
        """Rows: features of the result."""
        return self.qdata.shape[-2]

    @property
    def k(self) -> int:
        """Columns: features of the activations."""
        return self.qdata.shape[-1] * 8 // self.format.bits

    def rows(self, start: int, end: int) -> StoredWeight:
        """Rows of a weight [N, K], views."""
        chosen = {name: None if part is None else part[start:end] for name, part in self.components.items()}
        return StoredWeight(self.format, **chosen)  # type: ignore[arg-type]

    def dequantize(self) -> Tensor:
        """Values float32 [*, N, K]."""
        return self.format.dequantize(*self.tensors)

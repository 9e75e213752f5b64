"""What a rule is, and what several rules need."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import ClassVar

import torch

from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.torch_private import bounds

# An index takes the lower half of a key of a sort.
_LONGEST = 1 << 31


class Rule(abc.ABC):
    """Decides over calls of one operator family.

    A rule's word is final for its operators, after the checks of dtype, layout and shape that hold for all.
    """

    ops: ClassVar[tuple[torch._ops.OpOverload, ...]]

    @abc.abstractmethod
    def refuse(self, view: NodeView) -> Refusal | None:
        """The reason why this call cannot be claimed, or ``None``."""


def overloads(*packets: torch._ops.OpOverloadPacket) -> tuple[torch._ops.OpOverload, ...]:
    """Every overload of operators, except those that write to an ``out`` argument or in place."""
    found = (getattr(packet, name) for packet in packets for name in packet.overloads())  # type: ignore[no-untyped-call]
    return tuple(op for op in found if not op._schema.is_mutable)


def library_call(view: NodeView, because: str, **values: object) -> Refusal:
    """The refusal for a call that Inductor would hand to a library kernel that the runtime lacks."""
    return Refusal(f"{because}: Inductor would call a library kernel that the runtime lacks", values)


def size_along(tensor: torch.Tensor, dim: int | None) -> int | torch.SymInt:
    """The size of a dimension; of all together for ``None``, and 1 of a number."""
    if dim is None:
        return tensor.numel()
    return tensor.shape[dim] if tensor.dim() else 1


def unbounded(view: NodeView, size: int | torch.SymInt) -> Refusal | None:
    """The refusal for a size that nothing bounds on the GPU, where export fixes the number of steps."""
    _, bound = bounds(size)
    if view.side == "host" or (bound is not None and bound <= _LONGEST):
        return None
    most = "no bound" if bound is None else f"up to {bound}"
    return Refusal(
        f"{view.op} on the GPU takes sizes with a bound, up to {_LONGEST}, got {size} ({most}); "
        "export with torch.export.Dim(..., max=...)",
        {"size": size, "bound": bound},
    )


def dtype_list(dtypes: Iterable[torch.dtype]) -> str:
    """Dtypes in words, in a fixed order."""
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))

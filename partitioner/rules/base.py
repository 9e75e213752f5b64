"""What a rule is, and what several rules need."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import ClassVar

import torch

from etcuda.partitioner.node_view import NodeView, Refusal


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


def dtype_list(dtypes: Iterable[torch.dtype]) -> str:
    """Dtypes in words, in a fixed order."""
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))

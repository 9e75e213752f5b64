"""What a rule is."""

from __future__ import annotations

import abc
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

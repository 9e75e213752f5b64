"""Which numbers can be computed from the sizes of which tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import Node

from etcuda.torch_private import expression


def free_symbols(value: object) -> set[Any]:
    """Symbols in the expression of a number."""
    return set(getattr(expression(value), "free_symbols", set()))


def size_symbols(tensors: Iterable[Node]) -> dict[Any, tuple[Node, int]]:
    """For each symbol that is itself a dimension of one of the tensors: the first such node and dimension."""
    found: dict[Any, tuple[Node, int]] = {}
    for node in tensors:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            for dim, size in enumerate(value.shape):
                symbol = expression(size)
                if getattr(symbol, "is_Symbol", False):
                    found.setdefault(symbol, (node, dim))
    return found

"""Which numbers can be computed from the sizes of which tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import Node


def expression(value: object) -> Any | None:
    """The sympy expression of a symbolic number, the number itself if it is one, else ``None``."""
    if isinstance(value, torch.SymInt | torch.SymBool | torch.SymFloat):
        return value.node.expr
    return value if isinstance(value, bool | int | float) else None


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


def hint(size: int | torch.SymInt) -> int:
    """A size at the example inputs."""
    if not isinstance(size, torch.SymInt):
        return size
    found: Any = size.node.hint
    return int(found)


def bounds(size: int | torch.SymInt) -> tuple[int, int | None]:
    """The least and the greatest value that a size can take; ``None`` where nothing bounds it."""
    if not isinstance(size, torch.SymInt):
        return size, size
    environment: Any = size.node.shape_env
    found = environment.bound_sympy(size.node.expr)
    least = int(found.lower) if found.lower.is_Integer else 0
    return least, int(found.upper) if found.upper.is_Integer else None

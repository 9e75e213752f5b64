"""Sizes that may be symbolic, in numbers."""

from __future__ import annotations

from typing import Any

import torch


def hint(size: int | torch.SymInt) -> int:
    """A size at the example inputs."""
    if not isinstance(size, torch.SymInt):
        return size
    found: Any = size.node.hint
    return int(found)


def upper_bound(size: int | torch.SymInt) -> int | None:
    """The greatest value that a size can take; ``None`` where nothing bounds it."""
    if not isinstance(size, torch.SymInt):
        return size
    environment: Any = size.node.shape_env
    upper = environment.bound_sympy(size.node.expr).upper
    return int(upper) if upper.is_Integer else None

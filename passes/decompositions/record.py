"""What is known of an operator that becomes a formula of ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

Arguments = Mapping[str, Any]


def _always(given: Arguments) -> bool:
    return True


def _never(given: Arguments) -> str | None:
    return None


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """A formula for some operators of one schema.

    Attributes:
        ops: the operators.
        formula: takes the arguments in the schema's order, with all defaults, and returns what the operator does, in
            its shapes and dtypes. It calls what Inductor generates code for, and matrix products.
        applies: whether a call is to become the formula; Inductor generates code for the others by itself.
        refuse: why the formula does not serve a call that it applies to, in words, or ``None``.
    """

    ops: tuple[torch._ops.OpOverload, ...]
    formula: Callable[..., Any]
    applies: Callable[[Arguments], bool] = _always
    refuse: Callable[[Arguments], str | None] = _never


def existing(namespace: Any, *names: str) -> tuple[torch._ops.OpOverload, ...]:
    """The operators ``name.overload`` of a namespace, without those that this release of PyTorch lacks."""
    found = []
    for name in names:
        packet, _, overload = name.partition(".")
        op = getattr(getattr(namespace, packet, None), overload or "default", None)
        if op is not None:
            found.append(op)
    return tuple(found)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums of a floating dtype are computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32

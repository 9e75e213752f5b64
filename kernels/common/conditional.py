"""Launches that a call of a program makes or not: a kernel for other numbers of tokens gets an empty grid.

A program whose number of tokens is dynamic has a way to compute a product for each range of tokens. Its code is
straight: all ways write to the same memory, and all but one of them launch nothing. A grid without CTAs costs the host
a comparison, where a branch would cost a graph of its own in the compiler.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class _Condition:
    """1 or 0, by which grids are multiplied, and the memory that the next product writes to."""

    active: int | torch.SymInt
    result: Tensor | None


_condition: contextvars.ContextVar[_Condition | None] = contextvars.ContextVar("condition", default=None)


@contextlib.contextmanager
def launched_if(active: int | torch.SymInt, result: Tensor | None = None) -> Iterator[None]:
    """While an operator is traced: its kernels run where ``active`` is 1, and nothing does where it is 0.

    Args:
        active: 1 or 0, computed from sizes.
        result: [at least M, N], dense: the memory of a product's result; ``None`` for memory of its own.
    """
    token = _condition.set(_Condition(active, result))
    try:
        yield
    finally:
        _condition.reset(token)


def in_range(size: int | torch.SymInt, least: int, most: int | None) -> int | torch.SymInt:
    """1 where ``least`` <= size <= ``most``, else 0, without a branch; ``most`` is ``None`` for any.

    Args:
        size: 0 or more.
        least: 0 or more.
        most: at least ``least``, and 1.
    """
    active: int | torch.SymInt = 1
    if least > 0:
        active = torch.sym_min(size // least, 1)
    if most is not None:
        active = active * torch.sym_min((most // torch.sym_max(size, 1)), 1)
    return active


def conditional(kernel: Any) -> Any:
    """A kernel that is being traced, launched on as many CTAs as the condition says."""
    condition = _condition.get()
    return kernel if condition is None else _Conditional(kernel, condition.active)


def new_result(x: Tensor, shape: Sequence[int | torch.SymInt], dtype: torch.dtype) -> Tensor:
    """Memory on the device of ``x`` for a product: that of the condition, if there is one."""
    condition = _condition.get()
    if condition is None or condition.result is None:
        return x.new_empty(tuple(shape), dtype=dtype)
    return condition.result


@dataclasses.dataclass(frozen=True)
class _Conditional:
    kernel: Any
    active: int | torch.SymInt

    def __getitem__(self, grid: tuple[int | torch.SymInt, ...]) -> Any:
        first, *others = grid
        return self.kernel[(first * self.active, *others)]

"""What AOTInductor takes for granted about sizes that are numbers only at a call.

Where generated code depends on how such sizes compare, Inductor answers by the example and goes on as if it were so.
Answers on which results depend have to hold at a call too.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import sympy
import torch
from torch._guards import detect_fake_mode
from torch._inductor.codegen.cpp import CppKernel
from torch._inductor.sizevars import SizeVarAllocator
from torch._inductor.virtualized import V
from torch.utils._sympy.functions import Max, Min

# Where one layout is told from others: by "no" the general one is taken, which is right for all.
_GENERAL_CASE = frozenset(
    {
        "check_contiguous_sizes_strides",
        "is_contiguous_for_memory_format",
        "_is_non_overlapping_and_dense_or_false",
        # Whether something is to be expanded, which does no harm where it has the size already.
        "meta_copy_",
    }
)


class _Guards(list[Any]):
    """The guards of a ``ShapeEnv``; those that a call has to fulfil are kept apart too."""

    def __init__(self, guards: list[Any]) -> None:
        super().__init__(guards)
        self.required: list[str] = []

    def append(self, guard: Any) -> None:
        super().append(guard)
        if isinstance(guard.expr, sympy.Eq) or not _is_general_case():
            self.required.append(sympy.srepr(guard.expr))


@contextlib.contextmanager
def assumptions_of(inputs: tuple[Any, ...]) -> Iterator[list[str]]:
    """A list that has, at the end, what was taken for granted inside of the sizes of fake ``inputs``, as ``srepr``
    writes expressions."""
    found: list[str] = []
    environment: Any = getattr(detect_fake_mode(list(inputs)), "shape_env", None)
    if environment is None:
        yield found
        return
    environment.guards = recorded = _Guards(environment.guards)
    try:
        yield found
    finally:
        environment.guards = list(recorded)
        found += dict.fromkeys(recorded.required)


@contextlib.contextmanager
def choices_assume_nothing() -> Iterator[None]:
    """Sizes that decide how fast code is are compared without a trace; the lesser of two sizes stays an expression."""
    need: Any = CppKernel.need_use_acc_helper

    def need_use_acc_helper(self: CppKernel, *arguments: Any) -> bool:
        with V.graph.sizevars.shape_env.suppress_guards():
            return bool(need(self, *arguments))

    with (
        mock.patch.object(CppKernel, "need_use_acc_helper", need_use_acc_helper),
        mock.patch.object(SizeVarAllocator, "evaluate_min", _lesser),
        mock.patch.object(SizeVarAllocator, "evaluate_max", _greater),
    ):
        yield


def _lesser(self: SizeVarAllocator, left: Any, right: Any) -> Any:
    if self.statically_known_leq(left, right):
        return left
    return right if self.statically_known_leq(right, left) else Min(left, right)


def _greater(self: SizeVarAllocator, left: Any, right: Any) -> Any:
    if self.statically_known_leq(left, right):
        return right
    return left if self.statically_known_leq(right, left) else Max(left, right)


def _is_general_case() -> bool:
    """Whether the guard that is being added is of a question whose "no" is right for all sizes."""
    frame = sys._getframe(2)
    while frame.f_code.co_name not in _GENERAL_CASE:
        if frame.f_back is None or not frame.f_code.co_filename.startswith(torch.__path__[0]):
            return False
        frame = frame.f_back
    return True

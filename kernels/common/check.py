"""Checks of operators' arguments, alike in eager mode, on fake tensors and at export."""

from __future__ import annotations

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.errors import KernelArgumentError


def expect(holds: bool, op: str, name: str, expected: str, got: object, hint: str = "") -> None:
    """Checks a condition that is known now.

    Args:
        holds: the condition.
        op: the operator.
        name: the argument.
        expected: what it must be, in words.
        got: what it is.
        hint: what to do about it, a sentence.

    Raises:
        KernelArgumentError: it does not hold.
    """
    if not holds:
        raise KernelArgumentError(f"{op}: {name}: expected {expected}, got {got}.{' ' + hint if hint else ''}")


def expect_same(op: str, name: str, what: str, got: int, expected: int) -> None:
    """Checks that two sizes are equal; of symbolic ones it leaves a check in the graph.

    Raises:
        KernelArgumentError: two numbers that differ.
    """
    message = f"{op}: {name}: expected its {what} to be {expected}, got {got}."
    if isinstance(got, int) and isinstance(expected, int):
        if got != expected:
            raise KernelArgumentError(message)
    elif not statically_known_true(got == expected):
        torch._check(got == expected, lambda: message)

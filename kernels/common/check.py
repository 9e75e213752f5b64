"""Checks that operators share."""

from __future__ import annotations

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.errors import KernelArgumentError


def expect_same(op: str, name: str, what: str, got: int, expected: int) -> None:
    message = f"{op}: {name}: expected its {what} to be {expected}, got {got}."
    if isinstance(got, int) and isinstance(expected, int):
        if got != expected:
            raise KernelArgumentError(message)
    elif not statically_known_true(got == expected):
        torch._check(got == expected, lambda: message)


def expect(holds: bool, op: str, name: str, expected: str, got: object) -> None:
    if not holds:
        raise KernelArgumentError(f"{op}: {name}: expected {expected}, got {got}.")

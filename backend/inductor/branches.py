"""Operands of ``cond`` with the strides that its branches were compiled for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._inductor import ir, lowering
from torch._inductor.virtualized import V


@contextlib.contextmanager
def operands_keep_their_strides() -> Iterator[None]:
    """Makes ``cond`` hand each operand to its branches with the strides of the traced graph.

    Inductor compiles a branch for the traced strides, yet lays out an operand that it computes itself as it likes: a
    branch that was traced for a contiguous tensor would read, say, a transposed one.
    """
    cond = torch.ops.higher_order.cond
    lower = lowering.lowerings[cond]

    def lower_cond(pred: Any, true_fn: Any, false_fn: Any, operands: Any) -> Any:
        traced: Any = V.graph.current_node.args[-1]
        return lower(pred, true_fn, false_fn, [_as_traced(*pair) for pair in zip(operands, traced, strict=True)])

    with mock.patch.dict(lowering.lowerings, {cond: lower_cond}):
        yield


def _as_traced(operand: Any, traced: Any) -> Any:
    value = traced.meta.get("val") if isinstance(traced, torch.fx.Node) else None
    if isinstance(operand, ir.IRNode) and isinstance(value, Tensor):
        return lowering.constrain_to_fake_tensor(operand, value)  # type: ignore[no-untyped-call]
    return operand

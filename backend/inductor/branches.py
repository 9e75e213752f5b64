"""Branches of ``cond``: the strides of their operands, and when they use memory again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._inductor import ir, lowering
from torch._inductor.codegen import wrapper
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


@contextlib.contextmanager
def branches_are_within_the_estimate() -> Iterator[None]:
    """Lets a branch have more kernels than the graph around it.

    Inductor uses freed memory again where by its estimate the peak does not rise. In torch 2.11, other than in 2.14, it
    asks the outer graph's estimate for the kernels of a branch, by their numbers there, and fails beyond the last one.
    """
    with mock.patch.object(wrapper, "EfficientPeakEstimate", PeakEstimate):
        yield


class PeakEstimate(wrapper.EfficientPeakEstimate):
    """Inductor's estimate; between kernels that it does not know, memory is not used again."""

    def peak_between(self, line_a: Any, line_b: Any) -> Any:
        """Bytes, at most, from one kernel to another."""
        return super().peak_between(line_a, line_b) if self._knows(line_b) else self.overall_peak_memory

    def update_peak_between(self, line_a: Any, line_b: Any) -> None:
        """Notes that memory stays in use from one kernel to another."""
        if self._knows(line_b):
            super().update_peak_between(line_a, line_b)

    def _knows(self, line: Any) -> bool:
        return bool(line.scheduler_node_index <= self.segmented_tree.n)

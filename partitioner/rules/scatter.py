"""Writes through indices."""

from __future__ import annotations

import torch

from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.base import Rule, dtype_list, library_call

aten = torch.ops.aten

_LOOPED = frozenset({torch.int64, torch.bool})  # Inductor hands sums in these to the library on every target
_ATOMIC_ADD = frozenset({torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int32})
_BF16_ATOMICS = 90  # least compute capability with atomic addition of bf16


def _lacks_atomic_add(view: NodeView, dtype: torch.dtype) -> Refusal | None:
    """Generated GPU code adds with atomics, which not every dtype has; torch 2.11 spares the host nothing of that."""
    if dtype in _LOOPED:
        return library_call(view, f"addition through indices in {dtype}", dtype=dtype)
    if view.side == "host":
        return None
    if dtype not in _ATOMIC_ADD:
        return Refusal(f"GPUs add atomically in {dtype_list(_ATOMIC_ADD)}, got {dtype}", {"dtype": dtype})
    arch = view.compute_capability
    if dtype == torch.bfloat16 and arch is not None and arch < _BF16_ATOMICS:
        return library_call(view, f"atomic addition of {dtype} on sm_{arch}, expected sm_90", dtype=dtype, arch=arch)
    return None


class IndexPutRule(Rule):
    """Plain writes are claimed; adding ones where the dtype has atomics."""

    ops = (aten.index_put.default, aten._unsafe_index_put.default)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses accumulation in a dtype without atomics."""
        return _lacks_atomic_add(view, view.tensor("self").dtype) if view.arguments["accumulate"] else None


class IndexAddRule(Rule):
    """Becomes an index_put that accumulates."""

    ops = (aten.index_add.default,)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses a dtype without atomics."""
        return _lacks_atomic_add(view, view.tensor("self").dtype)


class ScatterRule(Rule):
    """Plain scatter, and sums where the dtype has atomics."""

    ops = (
        aten.scatter.src,
        aten.scatter.value,
        aten.scatter.reduce,
        aten.scatter.value_reduce,
        aten.scatter_add.default,
        aten.scatter_reduce.two,
    )

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses other reductions than the sum, and dtypes without atomics."""
        reduce = view.arguments.get("reduce", "sum" if view.op is aten.scatter_add.default else None)
        dtype = view.tensor("self").dtype
        if reduce not in (None, "sum", "add"):
            return library_call(view, f"scatter takes the reduction 'sum' or none, got {reduce!r}", reduce=reduce)
        if reduce is not None:
            return _lacks_atomic_add(view, dtype)
        if view.side == "cuda" and "src" in view.arguments and dtype in _LOOPED:
            return library_call(view, f"scatter of a tensor of {dtype} on the GPU", dtype=dtype)
        return None


class MaskedScatterRule(Rule):
    """Needs a scan, which generated host code has not."""

    ops = (aten.masked_scatter.default,)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses on the host."""
        return library_call(view, "masked_scatter on the host") if view.side == "host" else None

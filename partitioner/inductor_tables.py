"""What Inductor does with an operator. All reading of its private tables for partitioning is here."""

from __future__ import annotations

import enum
import functools

import torch

from etcuda.shims import Side


class Lowering(enum.Enum):
    """How Inductor turns an operator into code."""

    GENERATED = "generated"  # a kernel of its own making
    DECOMPOSED = "decomposed"  # other operators, lowered in turn
    FALLBACK = "fallback"  # a call to a library kernel
    NONE = "none"  # unknown to it: would be a call to PyTorch


@functools.cache
def lowering_of(op: torch._ops.OpOverload) -> Lowering:
    """How Inductor lowers ``op`` for every argument alike; what depends on arguments is for the rules to know.

    The set ``lowering.fallbacks`` is not asked: lowering a graph can add to it, so that the answer would depend on
    what the process did before.
    """
    from torch._inductor import lowering
    from torch._inductor.decomposition import select_decomp_table

    if op in select_decomp_table():
        return Lowering.DECOMPOSED
    handler = lowering.lowerings.get(op) or lowering.lowerings.get(op.overloadpacket)
    if handler is not None:
        return Lowering.FALLBACK if getattr(handler, "_is_fallback_handler", False) else Lowering.GENERATED
    if torch._C._dispatch_has_kernel_for_dispatch_key(str(op._schema.name), "CompositeImplicitAutograd"):
        return Lowering.DECOMPOSED
    return Lowering.NONE


def has_device_function(op: torch._ops.OpOverload, side: Side) -> bool:
    """Whether a special function (``digamma``, ``igamma``) has code for the side; true of every other operator."""
    return side == "host" or op.overloadpacket not in _without_device_code()


@functools.cache
def _without_device_code() -> frozenset[torch._ops.OpOverloadPacket]:
    from torch._inductor.codegen.common import pointwise_overrides_data

    missing = (data.name for data in pointwise_overrides_data.values() if data.triton is None)
    return frozenset(getattr(torch.ops.aten, name) for name in missing if hasattr(torch.ops.aten, name))

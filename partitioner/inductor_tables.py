"""What Inductor does with an operator. All reading of its private tables for partitioning is here."""

from __future__ import annotations

import enum
import functools

import torch


class Lowering(enum.Enum):
    """How Inductor turns an operator into code."""

    GENERATED = "generated"  # a kernel of its own making
    DECOMPOSED = "decomposed"  # other operators, lowered in turn
    FALLBACK = "fallback"  # a call to a library kernel
    NONE = "none"  # unknown to it: would be a call to PyTorch


@functools.cache
def lowering_of(op: torch._ops.OpOverload) -> Lowering:
    """How Inductor lowers ``op`` for every argument alike; what depends on arguments is for the rules to know."""
    from torch._inductor import lowering
    from torch._inductor.decomposition import select_decomp_table

    if op in select_decomp_table():
        return Lowering.DECOMPOSED
    if op in lowering.fallbacks:
        return Lowering.FALLBACK
    if op in lowering.lowerings or op.overloadpacket in lowering.lowerings:
        return Lowering.GENERATED
    if torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd"):
        return Lowering.DECOMPOSED
    return Lowering.NONE

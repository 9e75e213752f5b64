"""Calls a function with formulas in the place of operators, or in eager."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from etcuda.passes.decompositions.table import DECOMPOSITION_OF


class Formulas(TorchDispatchMode):
    """Inside, operators that have a formula are computed by it.

    Attributes:
        used: the operators that were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.used: set[torch._ops.OpOverload] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        record = DECOMPOSITION_OF.get(func)
        if record is None:
            return func(*args, **kwargs)
        given = {
            argument.name: args[i] if i < len(args) else kwargs.get(argument.name, argument.default_value)
            for i, argument in enumerate(func._schema.arguments)
        }
        if not record.applies(given):
            return func(*args, **kwargs)
        assert record.refuse(given) is None
        self.used.add(func)
        return record.formula(*given.values())


def results(call: Any, *inputs: Tensor) -> list[Tensor]:
    found: list[Tensor] = tree_leaves(call(*inputs))
    return found


def cast(inputs: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Those of floating dtypes in another."""
    return tuple(each.to(dtype) if each.is_floating_point() else each for each in inputs)

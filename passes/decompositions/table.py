"""The one table of formulas."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from etcuda.passes.decompositions import (
    adaptive_pooling,
    antialias,
    grid_sampler,
    int_products,
    pooling,
    quantize,
    rounded_division,
    small_integers,
)
from etcuda.passes.decompositions.record import Decomposition

DECOMPOSITIONS: tuple[Decomposition, ...] = (
    *adaptive_pooling.DECOMPOSITIONS,
    *antialias.DECOMPOSITIONS,
    *grid_sampler.DECOMPOSITIONS,
    *int_products.DECOMPOSITIONS,
    *pooling.DECOMPOSITIONS,
    *quantize.DECOMPOSITIONS,
    *rounded_division.DECOMPOSITIONS,
    *small_integers.DECOMPOSITIONS,
)


def by_operator(decompositions: Iterable[Decomposition]) -> dict[torch._ops.OpOverload, Decomposition]:
    """Maps each operator to its formula.

    Raises:
        ValueError: two formulas list the same operator.
    """
    table: dict[torch._ops.OpOverload, Decomposition] = {}
    for each in decompositions:
        for op in each.ops:
            if op in table:
                first, second = (getattr(one.formula, "__name__", "a partial") for one in (table[op], each))
                raise ValueError(
                    f"operator {op} has two formulas: expected one, got {first} and {second}. Remove it from one."
                )
            table[op] = each
    return table


DECOMPOSITION_OF = by_operator(DECOMPOSITIONS)

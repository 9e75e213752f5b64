"""Which cases of a test with many parameters run by default; ``pytest --exhaustive``, or a GPU, runs all of them.

By default every value is met, and of three parameters every pair of values; the rest has the mark ``exhaustive``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def only(kept: bool, *values: Any, marks: Iterable[pytest.MarkDecorator] = ()) -> Any:
    """A row of parameters, which runs by default if it is ``kept``."""
    return pytest.param(*values, marks=[*marks, *([] if kept else [pytest.mark.exhaustive])])


def pairs(*parameters: Sequence[Any]) -> list[Any]:
    """Rows of all values of all parameters, of which those that meet each pair once run by default.

    A value that is a tuple stands for several parameters. The last parameter must have the fewest values.
    """
    sizes = [len(each) for each in parameters]
    assert min(sizes) == sizes[-1], f"expected the last parameter to have the fewest values, got {sizes}"
    rows = []
    for places in itertools.product(*map(range, sizes)):
        values = [each[place] for each, place in zip(parameters, places, strict=True)]
        flat = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
        rows.append(only(sum(places[:-1]) % sizes[-1] == places[-1], *flat))
    return rows


def alternate(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """Rows of all values of two parameters, of which half run by default, as the white squares of a chessboard."""
    rows = itertools.product(enumerate(first), enumerate(second))
    return [only((row + column) % 2 == 0, one, other) for (row, one), (column, other) in rows]


def diagonal(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """Rows of all values of two parameters, of which each value of the longer one runs once by default.

    Where cases are costly and one parameter hardly changes what the other does.
    """
    rows = itertools.product(enumerate(first), enumerate(second))
    few = min(len(first), len(second))
    return [only(row % few == column % few, one, other) for (row, one), (column, other) in rows]

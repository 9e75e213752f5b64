"""Grids that are empty where a condition does not hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from etcuda.kernels.common.conditional import conditional, in_range, launched_if, new_result


@pytest.mark.parametrize(("least", "most"), [(0, 1), (0, 8), (1, 1), (9, 64), (65, None), (0, None), (3, 2**31)])
def test_in_range(least: int, most: int | None) -> None:
    for size in (0, 1, 2, 8, 9, 10, 63, 64, 65, 66, 1000, 2**31, 2**31 + 1):
        expected = least <= size and (most is None or size <= most)
        assert in_range(size, least, most) == int(expected), size


class Recorded:
    """In the place of a kernel: returns the grid."""

    def __getitem__(self, grid: Any) -> Any:
        return grid


@pytest.mark.parametrize("active", [0, 1])
def test_a_grid_is_empty_where_the_condition_does_not_hold(active: int) -> None:
    assert conditional(Recorded())[(3, 4)] == (3, 4)
    with launched_if(active):
        assert conditional(Recorded())[(3, 4)] == (3 * active, 4)
        assert conditional(Recorded())[(5,)] == (5 * active,)
    assert conditional(Recorded())[(5,)] == (5,)


def test_products_write_to_the_memory_of_the_condition() -> None:
    x, result = torch.ones(2, 3), torch.empty(4, 5, dtype=torch.float16)
    with launched_if(1, result):
        assert new_result(x, (2, 5), torch.float16) is result
        with launched_if(1):
            made = new_result(x, (2, 5), torch.float16)
    assert (made.shape, made.dtype) == ((2, 5), torch.float16)
    assert new_result(x, (2, 5), torch.float16) is not result

"""Masks that positions determine become arguments of the kernels; others stay tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from etcuda.kernels.attention.problem import FULL, LOWER_RIGHT, POSITIONS, UPPER_LEFT
from tests.partitioner.programs import export
from tests.passes.attention.attention_routing import (
    BF16,
    SPLIT,
    attend,
    m_of,
    masking,
    n_of,
    only_call,
    routed,
    run,
    tensors,
)

pytestmark = pytest.mark.usefixtures("no_table")


def as_float(mask: torch.Tensor, low: float) -> torch.Tensor:
    return torch.where(mask, 0.0, low).to(BF16)


LOWEST = torch.finfo(BF16).min
POS = torch.tensor([3, 0, 39, 7, 8])

# Name: function of (q, k, v, more inputs), more inputs, (mask, kv_len, positions, causal, window) of the kernel call.
MASKS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], tuple[bool, bool, bool, int, int]]] = {
    "none": (lambda q, k, v: attend(q, k, v), (), (False, False, False, FULL, 0)),
    "is_causal": (lambda q, k, v: attend(q, k, v, is_causal=True), (), (False, False, False, UPPER_LEFT, 0)),
    "upper left": (lambda q, k, v: attend(q, k, v, n_of(k) <= m_of(q)), (), (False, False, False, UPPER_LEFT, 0)),
    "turned around": (lambda q, k, v: attend(q, k, v, m_of(q) >= n_of(k)), (), (False, False, False, UPPER_LEFT, 0)),
    "strictly below": (
        lambda q, k, v: attend(q, k, v, n_of(k) < m_of(q) + 1),
        (),
        (False, False, False, UPPER_LEFT, 0),
    ),
    "not above": (lambda q, k, v: attend(q, k, v, ~(n_of(k) > m_of(q))), (), (False, False, False, UPPER_LEFT, 0)),
    "tril": (
        lambda q, k, v: attend(q, k, v, torch.ones(5, 40, dtype=torch.bool).tril()),
        (),
        (False, False, False, UPPER_LEFT, 0),
    ),
    "lower right": (
        lambda q, k, v: attend(q, k, v, n_of(k) <= m_of(q) + (k.shape[2] - q.shape[2])),
        (),
        (False, False, False, LOWER_RIGHT, 0),
    ),
    "window": (
        lambda q, k, v: attend(q, k, v, (n_of(k) <= m_of(q)) & (n_of(k) > m_of(q) - 3)),
        (),
        (False, False, False, UPPER_LEFT, 3),
    ),
    "window by distance": (
        lambda q, k, v: attend(q, k, v, torch.logical_and(m_of(q) - n_of(k) >= 0, m_of(q) - n_of(k) < 3)),
        (),
        (False, False, False, UPPER_LEFT, 3),
    ),
    "four dimensions": (
        lambda q, k, v: attend(q, k, v, (n_of(k) <= m_of(q))[None, None].expand(1, 1, -1, -1)),
        (),
        (False, False, False, UPPER_LEFT, 0),
    ),
    "positions": (
        lambda q, k, v, p: attend(q, k, v, n_of(k) <= p[:, None]),
        (POS,),
        (False, False, True, POSITIONS, 0),
    ),
    "positions and a window": (
        lambda q, k, v, p: attend(q, k, v, (n_of(k) <= p[:, None]) & (n_of(k) > p[:, None] - 4)),
        (POS,),
        (False, False, True, POSITIONS, 4),
    ),
    "positions with an offset": (
        lambda q, k, v, p: attend(q, k, v, n_of(k) < p[:, None] - 2),
        (POS + 4,),
        (False, False, True, POSITIONS, 0),
    ),
    "positions per batch": (
        lambda q, k, v, p: attend(q, k, v, (n_of(k) <= p[:, :, None])[:, None]),
        (POS[None],),
        (False, False, True, POSITIONS, 0),
    ),
    "positions in a column": (
        lambda q, k, v, p: attend(q, k, v, n_of(k) <= p),
        (POS[:, None],),
        (False, False, True, POSITIONS, 0),
    ),
    "rows from a start": (
        lambda q, k, v, s: attend(q, k, v, n_of(k) <= (m_of(q)[:, 0] + s)[:, None]),
        (torch.tensor(7),),
        (False, False, True, POSITIONS, 0),
    ),
    "rows from a start, in a column, and a window": (
        lambda q, k, v, s: attend(q, k, v, (n_of(k) <= m_of(q) + s[0]) & (n_of(k) > m_of(q) + s[0] - 4)),
        (torch.tensor([7]),),
        (False, False, True, POSITIONS, 4),
    ),
    "rows from a start and an offset": (
        lambda q, k, v, s: attend(q, k, v, n_of(k) < m_of(q) + s - 2),
        (torch.tensor(7),),
        (False, False, True, POSITIONS, 0),
    ),
    "lengths": (
        lambda q, k, v, s: attend(q, k, v, (n_of(k)[None] < s[:, None])[:, None, None]),
        (torch.tensor([9]),),
        (False, True, False, FULL, 0),
    ),
    "lengths and upper left": (
        lambda q, k, v, s: attend(q, k, v, (n_of(k) < s[0]) & (n_of(k) <= m_of(q))),
        (torch.tensor([3]),),
        (False, True, False, UPPER_LEFT, 0),
    ),
    "zeros and minus infinities": (
        lambda q, k, v: attend(q, k, v, as_float(n_of(k) <= m_of(q), -torch.inf)),
        (),
        (False, False, False, UPPER_LEFT, 0),
    ),
    "zeros and lowest numbers": (
        lambda q, k, v: attend(q, k, v, as_float(n_of(k) <= m_of(q), LOWEST)),
        (),
        (False, False, False, UPPER_LEFT, 0),
    ),
    # What must stay a tensor.
    "lowest numbers where a row may see no key": (
        lambda q, k, v, p: attend(q, k, v, as_float(n_of(k) <= p[:, None], LOWEST)),
        (POS,),
        (True, False, False, FULL, 0),
    ),
    "an input": (
        lambda q, k, v, mask: attend(q, k, v, mask),
        (torch.rand(5, 40) > 0.5,),
        (True, False, False, FULL, 0),
    ),
    "an input and upper left": (
        lambda q, k, v, mask: attend(q, k, v, mask & (n_of(k) <= m_of(q))),
        (torch.rand(5, 40) > 0.2,),
        (True, False, False, FULL, 0),
    ),
    "every other key": (
        lambda q, k, v: attend(q, k, v, 2 * n_of(k) <= m_of(q)),
        (),
        (True, False, False, FULL, 0),
    ),
    "a start that no tensor adds to the rows": (
        lambda q, k, v, s: attend(q, k, v, n_of(k) - s <= m_of(q)),
        (torch.tensor(7),),
        (True, False, False, FULL, 0),
    ),
    "a chessboard": (lambda q, k, v: attend(q, k, v, n_of(k) != m_of(q)), (), (True, False, False, FULL, 0)),
    "near on both sides": (
        lambda q, k, v: attend(q, k, v, (n_of(k) < m_of(q) + 3) | (n_of(k) > m_of(q) - 3)),
        (),
        (True, False, False, FULL, 0),
    ),
    "a window whose width is data": (
        lambda q, k, v, w: attend(q, k, v, (n_of(k) <= m_of(q)) & (n_of(k) > m_of(q) - w)),
        (torch.tensor(2),),
        (True, False, False, FULL, 0),
    ),
    "a bias": (lambda q, k, v, b: attend(q, k, v, b), (torch.randn(4, 5, 40).to(BF16),), (True, False, False, FULL, 0)),
    "numbers that are no infinities": (
        lambda q, k, v: attend(q, k, v, as_float(n_of(k) <= m_of(q), -5.0)),
        (),
        (True, False, False, FULL, 0),
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks(name: str) -> None:
    function, more, expected = MASKS[name]
    inputs = (*tensors(), *more)
    program = routed(export(function, *inputs))
    node = only_call(program)
    assert node.target is SPLIT
    assert masking(node) == expected
    torch.testing.assert_close(run(program, *inputs), function(*inputs), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 1)])
def test_the_position_of_a_single_row(shape: tuple[int, ...]) -> None:
    def function(q: Any, k: Any, v: Any, p: Any) -> Any:
        limit = p.reshape(-1, 1, 1, 1) if p.dim() else p
        return attend(q, k, v, n_of(k)[None, None, None] <= limit)

    inputs = (*tensors(l_q=1, batch=3), torch.randint(0, 40, shape))
    program = routed(export(function, *inputs))
    assert masking(only_call(program)) == (False, False, True, POSITIONS, 0)
    torch.testing.assert_close(run(program, *inputs), function(*inputs), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("l_q", [3, 5])
def test_rows_from_a_start_of_each_batch_row(l_q: int, column: bool) -> None:
    """Also with as many rows as batch rows, where sizes do not tell one from the other."""

    def function(q: Any, k: Any, v: Any, s: Any) -> Any:
        rows = s[:, None] + torch.arange(q.shape[2])
        rows = rows.reshape(3, 1, q.shape[2], 1) if column else rows[:, None, :, None]
        return attend(q, k, v, n_of(k) <= rows + 1)

    inputs = (*tensors(l_q=l_q, batch=3), torch.tensor([0, 30, 7]))
    program = routed(export(function, *inputs))
    node = only_call(program)
    assert masking(node) == (False, False, True, POSITIONS, 0)
    assert node.args[5].meta["val"].shape == (3, l_q)  # type: ignore[union-attr]
    torch.testing.assert_close(run(program, *inputs), function(*inputs), atol=2e-2, rtol=2e-2)

"""What runs by default meets every pair of values, and what does not is run with ``--exhaustive``."""

from __future__ import annotations

import itertools

import pytest

from tests.conftest import runs_everything
from tests.exhaustive import alternate, diagonal, pairs

FIRST, SECOND, THIRD = "abcd", [(1, 2), (3, 4), (5, 6)], [True, False]


def kept(rows: list) -> list:  # type: ignore[type-arg]
    return [row.values for row in rows if not row.marks]


def test_every_pair_is_met() -> None:
    rows = pairs(FIRST, SECOND, THIRD)
    assert len(rows) == 24
    assert len({row.values for row in rows}) == 24
    found = [(a, (b, c), d) for a, b, c, d in kept(rows)]
    assert len(found) == 12
    for one, other in ((0, 1), (0, 2), (1, 2)):
        wanted = set(itertools.product((FIRST, SECOND, THIRD)[one], (FIRST, SECOND, THIRD)[other]))
        assert {(row[one], row[other]) for row in found} == wanted
    with pytest.raises(AssertionError, match=r"expected the last parameter to have the fewest values, got \[2, 3\]"):
        pairs(THIRD, SECOND)


def test_every_value_of_two_is_met() -> None:
    assert len(alternate(FIRST, THIRD)) == 8
    assert kept(alternate(FIRST, THIRD)) == [("a", True), ("b", False), ("c", True), ("d", False)]


def test_every_value_of_the_longer_is_met_once() -> None:
    assert len(diagonal(FIRST, THIRD)) == 8
    assert kept(diagonal("abc", "xyz")) == [("a", "x"), ("b", "y"), ("c", "z")]
    assert kept(diagonal(FIRST, "xyz")) == [("a", "x"), ("b", "y"), ("c", "z"), ("d", "x")]


@pytest.mark.exhaustive
def test_what_is_marked_runs_when_it_is_asked_for() -> None:
    assert runs_everything()


def test_what_is_marked_is_left_out(request: pytest.FixtureRequest) -> None:
    names = {item.name for item in request.session.items}
    if "test_every_pair_is_met" not in names:
        pytest.skip("a part of this file was asked for")
    assert ("test_what_is_marked_runs_when_it_is_asked_for" in names) == runs_everything()

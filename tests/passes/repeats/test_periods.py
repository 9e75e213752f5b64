from __future__ import annotations

import random

import pytest

from etcuda.passes.repeats.periods import Period, best_period


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("a", None),
        ("abc", None),
        ("aa", Period(0, 2, 1)),
        ("xabab", Period(1, 4, 2)),
        ("xababy", Period(1, 4, 2)),
        ("abcabcabx", Period(0, 8, 3)),
        # Five of one kind and one of another, over and over: the whole pattern saves more than its beginning.
        ("sssssfsssssfsssssf", Period(0, 18, 6)),
        # Two times a period of four saves as much as four times one of two would not.
        ("ababcababc", Period(0, 10, 5)),
    ],
)
def test_best_period(text: str, expected: Period | None) -> None:
    assert best_period([ord(letter) for letter in text]) == expected


def test_a_repeat_is_one_and_no_other_saves_more() -> None:
    generator = random.Random(0)
    for _ in range(300):
        tokens = [generator.randrange(2) for _ in range(generator.randrange(12))]
        found = best_period(tokens)
        possible = [
            (length // period - 1) * period
            for period in range(1, len(tokens) // 2 + 1)
            for start in range(len(tokens))
            for length in range(2 * period, len(tokens) - start + 1)
            if all(tokens[i] == tokens[i + period] for i in range(start, start + length - period))
        ]
        assert (0 if found is None else found.saved) == max(possible, default=0)
        if found is not None:
            found_tokens = tokens[found.start : found.start + found.length]
            assert len(found_tokens) == found.length >= 2 * found.period
            assert found_tokens[: -found.period] == found_tokens[found.period :]

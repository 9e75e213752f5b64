"""Philox against the known answers of its authors, and what the operators return."""

from __future__ import annotations

import pytest
import torch

from etcuda.errors import KernelArgumentError
from etcuda.kernels.random.philox import philox
from etcuda.random import make_state, randint

bits, below = torch.ops.etcuda.philox_bits, torch.ops.etcuda.philox_below

# Counter, key and words of the test vectors that come with Random123.
KNOWN = (
    ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
)


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    made = philox([torch.tensor(word) for word in words(counter)], [torch.tensor(word) for word in words(key)])
    assert [int(word) for word in made] == words(expected)


def test_an_element_has_the_block_of_its_place_and_draw() -> None:
    seed, offset, draw = 0x299F31D0A4093822, 2**40, 3
    made = [bits(make_state(seed, offset), draw, [2, 3], count, word) for count, word in ((63, 0), (32, 2), (5, 2))]
    for place in range(6):
        counter = [place, 0, (offset + draw) % 2**32, (offset + draw) >> 32]
        w = philox([torch.tensor(each) for each in counter], [torch.tensor(seed % 2**32), torch.tensor(seed >> 32)])
        first, third = (int(w[0]) << 32) | int(w[1]), int(w[2])
        assert [int(each.flatten()[place]) for each in made] == [first >> 1, third, third >> 27]


@pytest.mark.parametrize("count", [1, 2, 3, 1000, 2**31 - 1, 2**31, 2**31 + 5, 3 * 2**40 + 1, 2**62 - 1])
def test_numbers_below_a_count_are_a_scaled_fraction(count: int) -> None:
    state = make_state(5)
    whole = bits(state, 0, [100], 63, 0).tolist()
    # The upper 31 bits of each of the two words.
    fractions = [((each >> 32) << 31) | (each % 2**31) for each in whole]
    got = below(state, 0, [100], count)
    assert got.tolist() == [fraction * count >> 62 for fraction in fractions]
    assert int(got.min()) >= 0
    assert int(got.max()) < count


def test_no_elements_and_no_dimensions() -> None:
    state = make_state(0)
    assert bits(state, 0, [0, 3], 8, 0).shape == (0, 3)
    assert bits(state, 0, [], 32, 0).item() == 0x6627E8D5
    assert randint(state, 4, 5, []).item() == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bits(torch.zeros(3, dtype=torch.int64), 0, [1], 8, 0), r"state: expected \[2\] int64.*got \[3\]"),
        (lambda: bits(torch.zeros(2), 0, [1], 8, 0), r"state: expected .*got \[2\] torch.float32.*make_state"),
        (lambda: bits(make_state(0), 0, [1], 64, 0), "bits: expected 1 to 63, got 64"),
        (lambda: bits(make_state(0), 0, [1], 8, 1), "word: expected 0 or 2, got 1"),
        (lambda: below(make_state(0), 0, [1], 0), r"count: expected 1 to 2\*\*62 - 1, got 0"),
        (lambda: make_state(-1), r"seed: expected an integer from 0 to 2\*\*63 - 1, got -1"),
        (lambda: make_state(1, True), "offset: expected an integer.*got True"),
    ],
)
def test_bad_arguments(call: object, message: str) -> None:
    with pytest.raises(KernelArgumentError, match=message):
        call()  # type: ignore[operator]

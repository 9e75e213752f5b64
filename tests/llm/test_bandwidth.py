"""What a token reads of the caches, and the limit that follows."""

from __future__ import annotations

import pytest

from etcuda.llm.bandwidth import CacheReads, token_limit
from etcuda.llm.cache import LayerCache


def layer(number: int, window: int | None, length: int, is_ring: bool, reads_mask: bool = False) -> LayerCache:
    return LayerCache(number, 2, 16, 8, window, length, is_ring, reads_mask)


def test_layers_are_grouped_by_what_they_read() -> None:
    every, sliding = layer(0, None, 100, False), layer(1, 8, 23, True)
    masked, sliding_too = layer(2, 8, 23, True, reads_mask=True), layer(3, 8, 23, True)
    reads = CacheReads.of([every, sliding, masked, sliding_too], 2)
    each = 2 * (16 + 8) * 2
    assert {most: nbytes for nbytes, most in reads.groups} == {0: each, 8: 2 * each, 23: each}
    assert CacheReads.from_numbers(reads.numbers()) == reads
    assert reads.behind(4) == 5 * 4 * each
    assert reads.behind(49) == (50 + 2 * 8 + 23) * each


def test_a_state_is_read_wherever_a_token_stands() -> None:
    reads = CacheReads.of([], 2, state_bytes=1000)
    assert reads.behind(0) == reads.behind(500) == 1000
    assert CacheReads().behind(500) == 0


def test_limits() -> None:
    reads = CacheReads(((10, 0),))
    assert token_limit(1e6, 900, reads, 9) == 1e3
    assert token_limit(0, 900, reads, 9) == token_limit(1e6, 0, reads, 9) == 0
    with pytest.raises(ValueError, match="zip"):
        CacheReads.from_numbers([1, 2, 3])

"""Runs of a sequence that repeat one behind the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Period:
    """Tokens ``start`` to ``start + length`` are the same every ``period`` tokens; ``length >= 2 * period``."""

    start: int
    length: int
    period: int

    @property
    def saved(self) -> int:
        """Tokens beyond the first period, whole periods alone."""
        return (self.length // self.period - 1) * self.period


def best_period(tokens: Sequence[int], least: int = 1) -> Period | None:
    """The repeat that saves most tokens; of several, the one with the shortest period, then the first.

    Args:
        tokens: equal numbers stand for equal things.
        least: the shortest period that counts.
    """
    sequence = np.asarray(tokens, dtype=np.int64)
    best: Period | None = None
    for period in range(least, len(sequence) // 2 + 1):
        start, run = _longest_run(sequence[:-period] == sequence[period:])
        found = Period(start, run + period, period)
        if run >= period and (best is None or found.saved > best.saved):
            best = found
    return best


def _longest_run(equal: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> tuple[int, int]:
    """Start and length of the longest run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], equal.view(np.int8), [0]))))
    starts, ends = edges[::2], edges[1::2]
    if not len(starts):
        return 0, 0
    longest = int(np.argmax(ends - starts))
    return int(starts[longest]), int(ends[longest] - starts[longest])

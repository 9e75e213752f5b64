"""Threads fill a file of weights that was laid out with gaps where they belong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from etcuda.backend.threads import in_threads
from etcuda.backend.weight_bytes import Gap
from etcuda.files import write_at


def fill(gaps: Sequence[Gap]) -> None:
    """Writes the weights to their places, several at a time.

    Raises:
        SaveError: a weight's bytes are not what they were.
        OSError: a file cannot be written.
    """

    def task(gap: Gap) -> Callable[[], None]:
        def run() -> None:
            with open(gap.path, "r+b", buffering=0) as file:
                write_at(file.fileno(), gap.offset, gap.weight.checked())

        return run

    in_threads([task(gap) for gap in gaps])

"""Threads fill a file of weights that was laid out with gaps where they belong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from etcuda.backend.threads import in_threads
from etcuda.backend.weight_bytes import Gap
from etcuda.files import write_at


def fill(gaps: Sequence[Gap]) -> None:
    """Writes the weights to their places, several at a time.

    Raises:
        SaveError: a weight's bytes are not what they were.
        OSError: a file cannot be written.
    """

    stop = threading.Event()

    def checked(gap: Gap) -> Iterator[memoryview]:
        for chunk in gap.weight.checked():
            if stop.is_set():
                return
            yield chunk

    def task(gap: Gap) -> Callable[[], None]:
        def run() -> None:
            with open(gap.path, "r+b", buffering=0) as file:
                write_at(file.fileno(), gap.offset, checked(gap))

        return run

    in_threads([task(gap) for gap in gaps], stop)

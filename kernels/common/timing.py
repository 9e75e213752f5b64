"""Times GPU calls: inside a CUDA graph or not, with inputs out of the L2 cache or in it."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence

import torch

_FLUSH_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class Times:
    """Microseconds per call over the repetitions: median, mean, standard deviation."""

    median_us: float
    mean_us: float
    spread_us: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Times:
        """From one sample a repetition."""
        spread = statistics.stdev(samples) if len(samples) > 1 else 0.0
        return cls(statistics.median(samples), statistics.fmean(samples), spread)


class Timer:
    """Times functions of an index, where different indices read different inputs.

    Cold: other memory is read through the L2 cache before each repetition (written, its lines would have to go back to
    memory in the timed part), and no input is read twice in one unless all together are larger than the cache.
    Hot: one untimed pass comes before, and every call reads the same input.
    """

    def __init__(self) -> None:
        self._flush = torch.zeros(_FLUSH_BYTES // 4, device="cuda")
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        # The pool lives as long as a graph that uses it: the last one stays until the next is captured.
        self._last: torch.cuda.CUDAGraph | None = None

    def graph_us(self, call: Callable[[int], object], calls: int, repetitions: int, hot: bool = False) -> Times:
        """Time per call inside one CUDA graph of ``calls`` calls."""
        # Not torch.cuda.graph: that collects garbage and returns all cached memory each time.
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool)
            try:
                for index in range(calls):
                    call(0 if hot else index)
            finally:
                graph.capture_end()
        self._last = graph
        return self._repeat(graph.replay, calls, repetitions, hot)

    def plain_us(self, call: Callable[[int], object], calls: int, repetitions: int, hot: bool = False) -> Times:
        """Time per call of ``calls`` calls launched one after another from Python."""

        def all_calls() -> None:
            for index in range(calls):
                call(0 if hot else index)

        return self._repeat(all_calls, calls, repetitions, hot)

    def _repeat(self, run: Callable[[], object], calls: int, repetitions: int, hot: bool) -> Times:
        run()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        samples = []
        for _ in range(repetitions):
            if hot:
                run()
            else:
                self._flush.sum()
            begin.record()
            run()
            end.record()
            end.synchronize()
            samples.append(begin.elapsed_time(end) * 1e3 / calls)
        return Times.of(samples)

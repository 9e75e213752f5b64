"""Counts of what was answered, in the text format of Prometheus."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from etcuda.serve.job import Ended

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_RATES = (1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 200.0, 400.0, 800.0, 1600.0)


class _Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds, self._counts = bounds, [0] * len(bounds)
        self._sum, self._total = 0.0, 0

    def add(self, value: float) -> None:
        self._sum, self._total = self._sum + value, self._total + 1
        for place, bound in enumerate(self._bounds):
            self._counts[place] += value <= bound

    def lines(self, name: str) -> Iterator[str]:
        yield f"# TYPE {name} histogram"
        for bound, count in zip(self._bounds, self._counts, strict=True):
            yield f'{name}_bucket{{le="{bound:g}"}} {count}'
        yield f'{name}_bucket{{le="+Inf"}} {self._total}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {self._total}"


class Metrics:
    """Of one HTTP server. Functions may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._statuses: dict[int, int] = {}
        self._tokens = {"prompt": 0, "reused": 0, "generated": 0}
        self._steps: dict[str, int] = {}
        self._sessions: dict[str, int] = {}
        self._running = 0
        self._histograms = {
            "queue_seconds": _Histogram(_SECONDS),
            "time_to_first_token_seconds": _Histogram(_SECONDS),
            "decode_tokens_per_second": _Histogram(_RATES),
        }

    def began(self) -> None:
        """A request came."""
        with self._lock:
            self._running += 1

    def answered(self, status: int) -> None:
        """A request is over; ``status`` of HTTP, of the error that ended a stream too, or 499: the client is gone."""
        with self._lock:
            self._running -= 1
            self._statuses[status] = self._statuses.get(status, 0) + 1

    def ended(self, event: Ended) -> None:
        """A choice is whole."""
        figures = event.figures
        with self._lock:
            self._tokens["prompt"] += figures.prompt_tokens
            self._tokens["reused"] += figures.reused_tokens
            self._tokens["generated"] += figures.generated_tokens
            self._steps[event.replica] = max(figures.steps, self._steps.get(event.replica, 0))
            self._sessions[event.replica] = figures.sessions
            self._histograms["queue_seconds"].add(figures.queue_seconds)
            if figures.generated_tokens:
                self._histograms["time_to_first_token_seconds"].add(figures.first_token_seconds)
            if figures.generated_tokens > 1 and figures.decode_seconds > 0:
                rate = (figures.generated_tokens - 1) / figures.decode_seconds
                self._histograms["decode_tokens_per_second"].add(rate)

    def text(self) -> str:
        """All of it."""
        with self._lock:
            return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield "# TYPE etcuda_requests_running gauge"
        yield f"etcuda_requests_running {self._running}"
        yield "# TYPE etcuda_requests_total counter"
        for status, count in sorted(self._statuses.items()):
            yield f'etcuda_requests_total{{status="{status}"}} {count}'
        yield "# TYPE etcuda_tokens_total counter"
        for kind, count in self._tokens.items():
            yield f'etcuda_tokens_total{{kind="{kind}"}} {count}'
        for name, kind, values in (("steps_total", "counter", self._steps), ("sessions", "gauge", self._sessions)):
            yield f"# TYPE etcuda_replica_{name} {kind}"
            for replica, count in sorted(values.items()):
                yield f'etcuda_replica_{name}{{replica="{replica}"}} {count}'
        for name, histogram in self._histograms.items():
            yield from histogram.lines(f"etcuda_{name}")

"""Single calls timed one by one by the host's clock, inputs and output in host memory."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARMUP = 50
CALLS = 500

Function = Callable[..., Tensor]


@dataclasses.dataclass(frozen=True)
class CallTimes:
    """Microseconds of the host's clock per call: the median, and the 10th and 90th percentile."""

    median_us: float
    p10_us: float
    p90_us: float

    @classmethod
    def of(cls, host_ns: Sequence[float]) -> CallTimes:
        """From samples in nanoseconds."""
        deciles = statistics.quantiles(host_ns, n=10)
        return cls(statistics.median(host_ns) / 1e3, deciles[0] / 1e3, deciles[-1] / 1e3)


class HostCall:
    """A function on GPU tensors, called the way a program without PyTorch would call it.

    A call copies its inputs from pinned host memory to the device, runs the function, copies the output to pinned host
    memory and waits.
    """

    def __init__(self, function: Function, inputs: tuple[Tensor, ...]) -> None:
        self._function = function
        self._pinned = [tensor.pin_memory() for tensor in inputs]
        self._staged = [tensor.cuda() for tensor in inputs]
        with torch.no_grad():
            first = function(*self._staged)
        self._result = torch.empty(first.shape, dtype=first.dtype, pin_memory=True)

    def enqueue(self) -> None:
        """Everything but the wait."""
        for target, source in zip(self._staged, self._pinned, strict=True):
            target.copy_(source, non_blocking=True)
        self._result.copy_(self._function(*self._staged), non_blocking=True)

    def __call__(self) -> Tensor:
        """One call; the result is overwritten by the next."""
        with torch.no_grad():
            self.enqueue()
        torch.cuda.current_stream().synchronize()
        return self._result


def time_calls(call: HostCall) -> CallTimes:
    """Times single calls, each alone on an idle device."""
    host_ns = []
    for index in range(-WARMUP, CALLS):
        before = time.perf_counter_ns()
        call()
        if index >= 0:
            host_ns.append(time.perf_counter_ns() - before)
    return CallTimes.of(host_ns)


def device_time_us(call: HostCall) -> float:
    """Device time of one call, copies included: a CUDA graph of it, replayed back to back, time per replay."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        call.enqueue()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            call.enqueue()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        samples = []
        for index in range(25):
            begin.record()
            for _ in range(100):
                graph.replay()
            end.record()
            end.synchronize()
            if index >= 5:
                samples.append(begin.elapsed_time(end) * 10)
    return statistics.median(samples)

"""The tuner without a GPU: a device, a timer and processes that are made up."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Any

import pytest

from etcuda.kernels.common import tuner
from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.common.timing import Times
from etcuda.kernels.common.tuning import Job, Tuning

H200 = LocalDevice("sm_90", 132, 227 << 10, 60 << 20)


def fake_gpu(
    monkeypatch: pytest.MonkeyPatch,
    tuning_type: type[Tuning[Any, Any, Any]],
    time_us: Callable[[Any, Any, Any], float],
    reject: Callable[[Job[Any, Any, Any]], str | None],
) -> list[tuple[int, int]]:
    """Makes ``tuner.run`` work here.

    Args:
        monkeypatch: undoes it.
        tuning_type: the family; its inputs are ``None``.
        time_us: of kernel, problem and configuration: what a call takes.
        reject: why a configuration is no good, or ``None``.

    Returns:
        Calls of a graph and repetitions, for each time that was taken.
    """
    launched: list[tuple[Any, Any, Any]] = []
    timed: list[tuple[int, int]] = []

    class FakeTimer:
        def graph_us(self, call: Any, calls: int, repetitions: int, hot: bool = False) -> Times:
            timed.append((calls, repetitions))
            call(calls - 1)
            us = time_us(*launched[-1])
            return Times(us, us, 0.0)

    def call(self: Any, kernel: Any, problem: Any, config: Any, inputs: Any, index: int) -> None:
        assert 0 <= index < self.num_sets(problem)
        launched.append((kernel, problem, config))

    monkeypatch.setattr(LocalDevice, "current", lambda: H200)
    monkeypatch.setattr(tuning_type, "make_inputs", lambda *_: None)
    monkeypatch.setattr(tuning_type, "call", call)
    monkeypatch.setattr(tuner, "check", lambda tuning, job: reject(job))
    monkeypatch.setattr(tuner, "Timer", FakeTimer)
    monkeypatch.setattr(tuner, "environment", lambda device, timing: {"gpu": "made up", "num_sms": device.num_sms})
    threads = lambda jobs, mp_context: concurrent.futures.ThreadPoolExecutor(jobs)  # noqa: E731
    monkeypatch.setattr(tuner, "ProcessPoolExecutor", threads)
    return timed

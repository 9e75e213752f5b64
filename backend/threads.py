"""Work on many weights at once: numpy, torch and hashing let other threads run meanwhile."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_threads(tasks: Sequence[Callable[[], Result]], stop: threading.Event | None = None) -> list[Result]:
    """What tasks return, in their order. As many run at a time as there are processors for this process; inside each,
    torch works on one.

    The first task that fails ends it, and so does an interrupt: those that have not begun are dropped, and its
    exception is raised when those that run have ended.

    Args:
        tasks: in the order that they begin in.
        stop: set when it ends before its time, for long tasks to look at.
    """
    if not tasks:
        return []
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = concurrent.futures.ThreadPoolExecutor(min(len(tasks), len(os.sched_getaffinity(0))))
    try:
        waiting = [pool.submit(task) for task in tasks]
        return [each.result() for each in waiting]
    except BaseException:
        if stop is not None:
            stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)

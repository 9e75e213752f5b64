"""Work on many weights at once: numpy, torch and hashing let other threads run meanwhile."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_threads(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """What tasks return, in their order. As many run at a time as there are processors for this process; inside each,
    torch works on one.

    The first task that fails ends it: those that have not begun are dropped, and its exception is raised.
    """
    if not tasks:
        return []
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = concurrent.futures.ThreadPoolExecutor(min(len(tasks), len(os.sched_getaffinity(0))))
    try:
        waiting = [pool.submit(task) for task in tasks]
        return [each.result() for each in waiting]
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)

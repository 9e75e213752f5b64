"""Exports without what nobody looks at: code of graphs on the way, source lines; and with few garbage collections."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Callable, Iterator

from etcuda.torch_private import keep_no_stack_traces, make_graph_code_when_called

# Objects that are made, beyond those freed, between two rounds of the collector over the youngest; it goes over all
# others in every 2,000th of them.
_YOUNG, _MIDDLE, _OLD = 100_000, 20, 100

_lock = threading.Lock()
_exports = 0
_restore: list[Callable[[], None]] = []


@contextlib.contextmanager
def lean_export() -> Iterator[None]:
    """Holds for the whole process while one of its threads is inside.

    In the first ten minutes of an export of 60 layers a sixth of the time went into the Python code of graphs that are
    never called, and a twentieth into source lines behind nodes; of a lowering of 4 layers, a tenth into the garbage
    collector.
    """
    global _exports
    with _lock:
        _exports += 1
        if _exports == 1:
            _restore[:] = [make_graph_code_when_called(), keep_no_stack_traces(), _collect_seldom()]
    try:
        yield
    finally:
        with _lock:
            _exports -= 1
            if not _exports:
                while _restore:
                    _restore.pop()()


def _renew_lock() -> None:
    """A thread of the parent that held the lock is not in the child."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def _collect_seldom() -> Callable[[], None]:
    before = gc.get_threshold()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
    return lambda: gc.set_threshold(*before)

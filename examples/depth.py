"""How deep the models of the registry are: two layers, or a multiple of that where layers that repeat are looked at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_TIMES: ContextVar[int] = ContextVar("times", default=1)


def times() -> int:
    """What a model multiplies its number of layers with."""
    return _TIMES.get()


@contextlib.contextmanager
def deeper(factor: int) -> Iterator[None]:
    """Models that are made inside have ``factor`` times the layers."""
    token = _TIMES.set(factor)
    try:
        yield
    finally:
        _TIMES.reset(token)

"""Buffers that host kernels keep to themselves, a row at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from torch._inductor.loop_body import LoopBody


@contextlib.contextmanager
def buffers_written_in_place_are_whole() -> Iterator[None]:
    """Lets a buffer be written through indices in front of a softmax.

    Inductor asks how each user of a buffer reads it, before it keeps a row of it inside of fused loops. One that
    writes to the buffer in place reads nothing, for which it fails (pytorch#196570).
    """
    read = LoopBody.get_read_expr

    def get_read_expr(body: Any, name: str) -> Any:
        try:
            return read(body, name)  # type: ignore[no-untyped-call]
        except KeyError:
            return None  # which is no contiguous index: the buffer stays whole

    with mock.patch.object(LoopBody, "get_read_expr", get_read_expr):
        yield

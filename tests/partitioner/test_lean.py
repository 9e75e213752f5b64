"""What an export leaves out is back when the last one has ended."""

from __future__ import annotations

import gc
import os
import threading

import pytest
from torch.fx import GraphModule

from etcuda.partitioner import lean
from etcuda.partitioner.lean import lean_export


def test_settings_return_after_the_last_of_several_threads() -> None:
    before, recompile = gc.get_threshold(), GraphModule.recompile
    first_is_in, second_is_out = threading.Event(), threading.Event()

    def first() -> None:
        with lean_export():
            first_is_in.set()
            second_is_out.wait(60)

    thread = threading.Thread(target=first)
    thread.start()
    first_is_in.wait(60)
    with lean_export():
        assert gc.get_threshold() != before
    assert gc.get_threshold() != before
    assert GraphModule.recompile is not recompile
    second_is_out.set()
    thread.join()
    assert gc.get_threshold() == before
    assert GraphModule.recompile is recompile


def test_settings_return_after_an_error() -> None:
    before, recompile = gc.get_threshold(), GraphModule.recompile
    with pytest.raises(ValueError, match="stop"), lean_export():
        raise ValueError("stop")
    assert gc.get_threshold() == before
    assert GraphModule.recompile is recompile


def test_a_child_can_export_whatever_the_parents_threads_hold() -> None:
    with lean._lock:
        child = os.fork()
        if child == 0:
            with lean.lean_export():
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

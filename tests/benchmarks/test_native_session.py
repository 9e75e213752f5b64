"""Programs run from Python through the C++ of the benchmarks, on the host."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest
import torch

from benchmarks.compile_native import compile_native
from benchmarks.native_session import NativeSession
from examples.bundle import make_bundle

Export = Callable[[str, str], pathlib.Path]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("native") / "session.so"
    assert compile_native("session.cpp", path, shared=True) == 0
    return path


@pytest.mark.xdist_group("decoder-fp32")
def test_state_lasts_and_time_is_taken(exported: Export, library: pathlib.Path) -> None:
    bundle = make_bundle("decoder-fp32")
    outputs = []
    with NativeSession(library, exported("decoder-fp32", "host")) as session:
        for call, eager in zip(bundle.calls, bundle.eager, strict=True):
            assert session.call(call.method, *call.inputs) > 0
            outputs.append(session.output(tuple(eager.shape), eager.dtype))
        assert bundle.verdict(outputs).passed
        with pytest.raises(RuntimeError, match=r"expected an output of 4 bytes, got 1024"):
            session.output((1,), torch.float32)
        with pytest.raises(RuntimeError, match=r"nonesuch: error \d+; the log says why"):
            session.call("nonesuch")
        with pytest.raises(TypeError, match=r"input 1: expected int64 on the CPU, got torch.float32"):
            session.call("decode", torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1))


def test_a_program_that_is_not_there(library: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(RuntimeError, match=r"none.pte: loading failed"):
        NativeSession(library, tmp_path / "none.pte")

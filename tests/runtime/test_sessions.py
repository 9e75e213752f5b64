"""Sessions in the stock Python runtime: state of their own, forks, saved files, errors, threads."""

from __future__ import annotations

import gc
import pathlib
import sys
import threading

import pytest
import torch

import etcuda.runtime
from etcuda.errors import SessionError
from etcuda.runtime import Session, SessionState

from .conftest import MakeProgram, run

runtime = pytest.importorskip("executorch.runtime")

ONES = torch.ones(3)
INITIAL = [10, 20, 30, 40, 50, 60, 70, 80]


def _load(path: pathlib.Path, data: pathlib.Path | None = None):  # type: ignore[no-untyped-def]
    return runtime.Runtime.get().load_program(path, data_path=data)


def _run(method, x: torch.Tensor, session: Session | None = None) -> list[float]:  # type: ignore[no-untyped-def]
    outputs = method.execute([x]) if session is None else session.execute(method, [x])
    result: list[float] = outputs[0].tolist()
    return result


@pytest.mark.parametrize("external", [None, "weights"])
def test_sessions_and_the_stock_state(make_program: MakeProgram, external: str | None) -> None:
    path = make_program(methods=["prefill", "decode"], external=external)
    program = _load(path, path.parent / "weights.ptd" if external else None)
    prefill, decode = program.load_method("prefill"), program.load_method("decode")
    first, second = Session(), Session()
    assert _run(prefill, ONES, first) == [1, 2, 3]
    assert _run(prefill, 5 * ONES, second) == [5, 10, 15]
    assert _run(decode, ONES, first) == [2, 4, 6]
    assert _run(decode, ONES) == [1, 2, 3]
    with second:
        assert _run(decode, ONES) == [6, 12, 18]
        with first:
            assert _run(prefill, ONES) == [3, 6, 9]
        assert _run(prefill, ONES) == [7, 14, 21]
    assert etcuda.runtime.reset_state() >= 1
    assert _run(decode, ONES) == [1, 2, 3]
    assert _run(decode, ONES, first) == [4, 8, 12]
    first.reset()
    assert _run(decode, ONES, first) == [1, 2, 3]


def test_states_of_a_session(make_program: MakeProgram) -> None:
    method = _load(make_program()).load_method("forward")
    session = Session()
    assert session.states() == []
    assert session.nbytes == 0
    _run(method, ONES, session)
    assert session.states() == [SessionState("cache", torch.float32, (8,), 32, "cpu")]
    assert session.nbytes == 32
    gc.collect()
    before = etcuda.runtime.memory_stats()[0].allocated
    del session
    gc.collect()
    assert etcuda.runtime.memory_stats()[0].allocated < before


def test_fork(make_program: MakeProgram) -> None:
    method = _load(make_program(state=INITIAL)).load_method("forward")
    session = Session()
    _run(method, torch.ones(8), session)
    copy, two = session.fork(), session.fork(length=2, dims={"c*": -1})
    whole = session.fork(length=0, dims={"cache": None})
    assert _run(method, 2 * ONES, session) == [13, 46, 99]
    assert _run(method, 0 * ONES, copy) == [11, 42, 93]
    assert _run(method, 0 * ONES, two) == [11, 42, 90]
    assert _run(method, 0 * ONES, whole) == [11, 42, 93]


@pytest.mark.parametrize(
    ("length", "dims", "words"),
    [
        (1, {}, "nothing says which dimension of the state cache"),
        (1, {"cache": 1}, "expected a dimension from -1 to 0, got 1"),
        (9, {"cache": 0}, "expected at most 8 positions in dimension 0, got 9"),
        (-1, {"cache": 0}, "expected 0 or more positions"),
        (1, {"cache": 0, "cash": 0}, "no state of the session is the first match of 'cash'"),
    ],
)
def test_fork_that_does_not_fit(make_program: MakeProgram, length: int, dims: dict[str, int], words: str) -> None:
    method = _load(make_program()).load_method("forward")
    session = Session()
    _run(method, ONES, session)
    with pytest.raises(SessionError, match=words):
        session.fork(length, dims)


def test_fork_with_wrong_arguments() -> None:
    for length, dims in (
        (None, {"cache": 0}),
        (1, None),
        ("1", {}),
        (True, {}),
        (1, {"cache": 1.5}),
        (1, {"a": 2**31}),
    ):
        with pytest.raises(ValueError, match=r"^fork: expected"):
            Session().fork(length, dims)  # type: ignore[arg-type]


RESTORE = """
import sys
import torch
from executorch.runtime import Runtime
from etcuda.runtime import Session
session = Session()
session.restore(sys.argv[2])
method = Runtime.get().load_program(sys.argv[1]).load_method("forward")
print(session.execute(method, [torch.ones(3)])[0].tolist())
"""


def test_saved_sessions(make_program: MakeProgram, tmp_path: pathlib.Path) -> None:
    program = make_program()
    method = _load(program).load_method("forward")
    session, other = Session(), Session()
    _run(method, ONES, session)
    saved = tmp_path / "chat.session"
    session.save(saved)
    assert saved.read_bytes() == session.to_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["chat.session"]
    assert _run(method, ONES, session) == [2, 4, 6]
    other.restore(session.to_bytes())
    assert _run(method, ONES, other) == [3, 6, 9]
    session.restore(str(saved))
    assert _run(method, ONES, session) == [2, 4, 6]
    done = run(sys.executable, "-W", "ignore", "-c", RESTORE, program, saved)
    assert done.stdout.strip() == "[2.0, 4.0, 6.0]", done.stderr


def test_damaged_and_other_files(make_program: MakeProgram, tmp_path: pathlib.Path) -> None:
    method = _load(make_program()).load_method("forward")
    stranger = _load(make_program(weight=[9] * 8)).load_method("forward")
    session, other = Session(), Session()
    _run(method, ONES, session)
    _run(stranger, ONES, other)
    saved = session.to_bytes()
    with pytest.raises(SessionError, match="was saved with another program: expected one whose weights"):
        session.restore(other.to_bytes())
    flipped = bytearray(saved)
    flipped[-40] ^= 4
    for damaged in (b"", b"no session", saved[:-1], saved + b"\0", flipped, memoryview(saved)[1:]):
        with pytest.raises(SessionError, match="is no saved session or is damaged"):
            session.restore(damaged)
    with pytest.raises(SessionError, match="No such file"):
        session.restore(tmp_path / "missing")
    with pytest.raises(SessionError, match="Check that the folder exists"):
        session.save(tmp_path / "missing" / "file")
    with pytest.raises(SessionError, match="null character"):
        session.save("a\0b")
    with pytest.raises(RuntimeError):
        _run(stranger, ONES, session)
    assert "Use a session of its own for each program" in etcuda.runtime.last_error()
    assert _run(method, ONES, session) == [2, 4, 6]
    assert _run(stranger, ONES, other) == [18, 18, 18]


def test_session_after_its_program(make_program: MakeProgram) -> None:
    path = make_program(state=INITIAL)
    session = Session()
    method = _load(path).load_method("forward")
    _run(method, ONES, session)
    del method
    gc.collect()
    saved = session.fork().to_bytes()
    with pytest.raises(SessionError, match="fork without a length"):
        session.fork(1, {"cache": 0})
    method = _load(path).load_method("forward")
    assert _run(method, ONES, session) == [12, 44, 96]
    session.restore(saved)
    assert _run(method, ONES, session) == [12, 44, 96]
    session.reset()
    assert _run(method, ONES, session) == [11, 42, 93]


def test_threads(make_program: MakeProgram) -> None:
    method = _load(make_program()).load_method("forward")
    common, wrong = Session(), []

    def work(step: int) -> None:
        own = Session()
        for i in range(1, 201):
            if _run(method, step * ONES, own)[0] != step * i:
                wrong.append((step, i))
            _run(method, ONES, common)
            if i % 50 == 0:
                own = own.fork()
                common.to_bytes()

    threads = [threading.Thread(target=work, args=(step,)) for step in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert _run(method, 0 * ONES, common) == [600, 1200, 1800]
    assert _run(method, ONES) == [1, 2, 3]


def test_leaving_another_session() -> None:
    first, second = Session(), Session()
    first.__enter__()
    second.__enter__()
    with pytest.raises(SessionError, match="innermost first"):
        first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    first.__exit__(None, None, None)

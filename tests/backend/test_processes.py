"""Exports from threads, after a fork, and where there is no main file; and what is said of a worker that dies."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower

from etcuda import CompileOptions, CudaPartitioner
from etcuda.backend.worker import client, ending
from etcuda.errors import CompileError

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.usefixtures("compiled_anew")

# What a notebook is: no main file, and a loop that runs.
NOTEBOOK = """
import asyncio, os, sys, threading, torch
from executorch.exir import to_edge_transform_and_lower
from etcuda import CudaPartitioner
from etcuda.backend import preprocess
from etcuda.backend.worker import client

def exported(width):
    return torch.export.export(torch.nn.Linear(16, width).eval(), (torch.randn(2, 16),))

def lower(program):
    partitioner = CudaPartitioner("host", {"compile_cache_gib": 0})
    return len(to_edge_transform_and_lower(program, partitioner=[partitioner]).to_executorch().buffer)

compile_all, started, compiling = preprocess.compile_all, threading.Event(), []

def compile_and_say_so(*arguments):
    started.set()
    compiling.append(threading.get_ident())
    return compile_all(*arguments)

async def main():
    # ExecuTorch's own part of a lowering is not safe in threads: the second begins when the first one compiles.
    preprocess.compile_all = compile_and_say_so
    programs = [exported(16), exported(32)]
    first = asyncio.create_task(asyncio.to_thread(lower, programs[0]))
    await asyncio.to_thread(started.wait)
    sizes = [lower(programs[1]), await first]
    assert min(sizes) > 10000 and len(set(compiling)) == 2, (sizes, compiling)

assert not hasattr(sys.modules["__main__"], "__file__")
asyncio.run(main())

child = os.fork()
size = lower(exported(48))
assert size > 10000, size
if child == 0:
    sys.exit(0)  # with what is to be done at an exit: the parent's worker stays
pid, status = os.waitpid(child, 0)
assert status == 0, status
(worker,) = client._running
assert worker.is_alive()
print("fine")
"""


@pytest.mark.slow
def test_threads_a_loop_and_a_fork(tmp_path: pathlib.Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", NOTEBOOK], env=environment, capture_output=True, text=True)
    assert done.stdout.strip().endswith("fine"), done.stdout + done.stderr
    assert list(tmp_path.glob("etcuda-*")) == []


def test_a_child_leaves_the_worker_to_its_parent() -> None:
    server = client._server(client.default_cache_dir())
    with client._turn:
        # In the child no thread will ever let go of the lock.
        child = os.fork()
        if child == 0:
            free = client._turn.acquire(blocking=False)
            left = not client._running
            client.shut_down()
            os._exit(0 if free and left else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client._running == [server]
    assert server.is_alive()


@pytest.fixture
def worker_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For tests that end the worker: the one that other tests use is put aside meanwhile."""
    with monkeypatch.context() as aside:
        aside.setattr(client, "_running", [])
        yield
        client.shut_down()


def lower() -> object:
    program = torch.export.export(torch.nn.ReLU(), (torch.randn(3, 8),))
    return to_edge_transform_and_lower(program, partitioner=[CudaPartitioner("host")])


def kill_process_of(parent: int, number: int) -> None:
    children = pathlib.Path(f"/proc/{parent}/task/{parent}/children")
    while not (found := children.read_text().split()):
        time.sleep(0.01)
    # Past the imports of ctypes and prctl, which come before the request is read.
    time.sleep(0.2)
    os.kill(int(found[0]), number)


@pytest.mark.usefixtures("worker_of_its_own")
def test_a_worker_that_dies_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    # A job that waits for its request for ever.
    monkeypatch.setattr(client, "write_request", lambda folder, _request: os.mkfifo(folder / "request.json"))
    server = client._server(client.default_cache_dir())
    killer = threading.Thread(target=kill_process_of, args=(server._process.pid, signal.SIGSEGV))
    killer.start()
    with pytest.raises(CompileError, match=r"(?s)compiling forward: .*signal 11, SIGSEGV.*last words"):
        lower()
    killer.join()
    assert server.is_alive()

    def die(_folder: pathlib.Path, _request: object) -> None:
        os.write(server._log.fileno(), b"the last thing that it printed\n")
        os.kill(server._process.pid, signal.SIGKILL)

    monkeypatch.setattr(client, "write_request", die)
    monkeypatch.setattr(client, "_server", lambda _cache_dir: server)
    with pytest.raises(
        CompileError, match=r"(?s)signal 9, SIGKILL: .*out of memory.* GiB are free now.*Export again.*the last thing"
    ):
        lower()
    assert not server.is_alive()


@pytest.mark.usefixtures("worker_of_its_own")
def test_a_worker_starts_beside_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    client.start_worker(CompileOptions()).join()
    (server,) = client._running
    client.start_worker(CompileOptions()).join()
    assert client._server(client.default_cache_dir()) is server
    client.shut_down()

    def refuse(_cache_dir: pathlib.Path) -> None:
        raise CompileError("no process")

    # Whoever compiles is told, and not who only went ahead.
    monkeypatch.setattr(client, "_Server", refuse)
    client.start_worker(CompileOptions()).join()
    assert client._running == []
    with pytest.raises(CompileError, match="no process"):
        lower()


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (3, "exit code 3"),
        (0, "exit code 0"),
        (-6, "signal 6, SIGABRT"),
        (-70, "signal 70"),
        (None, "it closed its output and still runs"),
    ],
)
def test_words_for_an_end(status: int | None, text: str) -> None:
    assert ending.describe(status) == text


def test_the_system_says_whom_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "out_of_memory_kills", lambda: 2)
    assert ending.describe(-9, 1).startswith("signal 9, SIGKILL: out of memory, the system ended it")
    assert ending.describe(-9, 2).startswith("signal 9, SIGKILL: most likely out of memory")
    monkeypatch.undo()
    assert ending.out_of_memory_kills() >= 0

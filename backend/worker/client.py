"""The user's side of the compile worker: starts it, feeds it jobs, shows progress, and leaves nothing behind.

A process has one worker, which threads use in turn. After a fork the child starts its own.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from etcuda.backend.worker.cache import CompileCache, job_key
from etcuda.backend.worker.ending import describe, out_of_memory_kills
from etcuda.backend.worker.job import JobRequest, JobResult, read_result, write_request
from etcuda.errors import CompileError
from etcuda.options import CompileOptions
from etcuda.scratch import TEMPORARY, scratch_folder

log = logging.getLogger(__name__)

_START_TIMEOUT_S = 300.0
_END_TIMEOUT_S = 5.0


def compile_all(requests: Sequence[JobRequest], labels: Sequence[str]) -> list[JobResult]:
    """Compiles several graphs, as many at a time as there are processors.

    Whatever ends this call early (an error, a timeout, Ctrl-C), no job and no temporary file outlives it. Calls of
    several threads take turns, and time that they wait is not counted.

    Raises:
        CompileError: a job failed or took longer than its ``timeout_s``; the message says which and why.
    """
    if not requests:
        return []
    options = requests[0].options
    cache = CompileCache(_cache_folder(options) / "delegates", int(options.compile_cache_gib * 2**30))
    with scratch_folder(pathlib.Path(tempfile.gettempdir()), TEMPORARY) as root:
        folders = [root / str(index) for index in range(len(requests))]
        for folder, request in zip(folders, requests, strict=True):
            folder.mkdir()
            write_request(folder, request)
        keys = [job_key(folder) if options.compile_cache_gib else None for folder in folders]
        found = {place: result for place, key in enumerate(keys) if key and (result := cache.get(key))}
        if found:
            log.info("compiled before: %s", ", ".join(labels[place] for place in found))
        # Of equal graphs the first is compiled.
        first = [keys.index(key) if key else place for place, key in enumerate(keys)]
        missing = sorted(set(first) - found.keys())
        compiled = _compile([folders[place] for place in missing], [labels[place] for place in missing], options)
        for place, result in zip(missing, compiled, strict=True):
            found[place] = result
            if key := keys[place]:
                cache.put(key, result)
    # Each second of processor time is told once.
    cost = {place: found[place].cpu_seconds for place in missing}
    return [dataclasses.replace(found[place], cpu_seconds=cost.pop(place, 0.0)) for place in first]


def start_worker(options: CompileOptions) -> threading.Thread:
    """Starts the compile worker beside what the caller does meanwhile: it takes seconds.

    What goes wrong is left to ``compile_all``, which starts one again and says what failed.

    Returns:
        The thread that starts it, which ends when the worker is ready.
    """

    def start() -> None:
        with _turn, contextlib.suppress(CompileError, OSError, TimeoutError):
            _server(_cache_folder(options))

    thread = threading.Thread(target=start, name="etcuda: start of the compile worker", daemon=True)
    thread.start()
    return thread


def _compile(folders: list[pathlib.Path], labels: list[str], options: CompileOptions) -> list[JobResult]:
    if not folders:
        return []
    with _turn:
        server = _server(_cache_folder(options))
        try:
            with _progress(options.progress, labels) as report:
                cpu_seconds = server.run(folders, labels, options.timeout_s, report)
        finally:
            if server.is_busy():
                server.kill()
    results = [read_result(folder) for folder in folders]
    return [dataclasses.replace(result, cpu_seconds=used) for result, used in zip(results, cpu_seconds, strict=True)]


class _Server:
    def __init__(self, cache_dir: pathlib.Path) -> None:
        environment = {
            **os.environ,
            # Set iteration order reaches generated code in places.
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
            # The worker compiles for a target, not for this machine: a GPU here must stay untouched.
            "CUDA_VISIBLE_DEVICES": "",
            "TRITON_CACHE_DIR": str(cache_dir),
            # Line tables would put this machine's paths into the kernels.
            "TRITON_DISABLE_LINE_INFO": "1",
            # Without the folder that the user is in, which may hold files named as modules are: an empty entry stands
            # for it, and -m adds it.
            "PYTHONPATH": os.pathsep.join(filter(None, [str(import_root()), os.environ.get("PYTHONPATH")])),
            "PYTHONSAFEPATH": "1",
        }
        for name in ("TORCH_LOGS", "TORCH_COMPILE_DEBUG", "TORCHINDUCTOR_MAX_AUTOTUNE"):
            environment.pop(name, None)
        self.cache_dir = cache_dir
        self._kills_before = out_of_memory_kills()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the process it belongs to
        self._process = subprocess.Popen(
            [sys.executable, "-m", "etcuda.backend.worker.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            # What were kept back would be written once more by a child that is forked.
            bufsize=0,
            env=environment,
            # A group of its own: Ctrl-C reaches this process alone, which then ends the whole group.
            start_new_session=True,
        )
        self._buffer = b""
        # Folders of jobs, and when each is given up.
        self._running: dict[str, float] = {}
        deadline = time.monotonic() + _START_TIMEOUT_S
        try:
            while self._next_event(deadline).get("event") != "ready":
                pass
        except BaseException:
            self.kill()
            raise

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def is_busy(self) -> bool:
        """Whether jobs were begun that have not ended."""
        return bool(self._running)

    def run(self, folders: Sequence[pathlib.Path], labels: Sequence[str], timeout_s: float, report: Any) -> list[float]:
        """Compiles jobs; returns the seconds of processor time that each took."""
        waiting = list(folders)
        running = self._running
        used: dict[str, float] = {}
        label_of = {str(folder): label for folder, label in zip(folders, labels, strict=True)}
        limit = max(1, len(os.sched_getaffinity(0)))
        while waiting or running:
            while waiting and len(running) < limit:
                folder = str(waiting.pop(0))
                running[folder] = time.monotonic() + timeout_s
                self._send(folder.encode() + b"\n")
            late, deadline = min(running.items(), key=lambda item: item[1])
            try:
                event = self._next_event(deadline)
            except TimeoutError:
                raise CompileError(
                    f"compiling {label_of[late]} took longer than timeout_s={timeout_s:g} seconds and was given up. "
                    "Pass a larger timeout_s, or fewer or smaller partitions."
                ) from None
            job = event["job"]
            if event["event"] == "progress":
                report(label_of[job], event["phase"], event["done"], event["total"])
            else:
                running.pop(job)
                used[job] = event["cpu_s"]
                report(label_of[job], "done", 1, 1)
                if event["status"] != 0:
                    raise _failure(pathlib.Path(job), label_of[job], event["status"], self._kills_before)
        return [used[str(folder)] for folder in folders]

    def kill(self) -> None:
        """Ends the worker and everything it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._log.close()

    def leave(self) -> None:
        """Lets go of a worker that belongs to the process that this one was forked from."""
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()

    def _send(self, data: bytes) -> None:
        stdin = _require(self._process.stdin)
        try:
            while data:
                data = data[stdin.write(data) :]
        except BrokenPipeError:
            raise self._ended() from None

    def _ended(self) -> CompileError:
        try:
            status: int | None = self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            status = None
        how = describe(status, self._kills_before)
        return CompileError(
            f"the compile worker ended unexpectedly ({how}); expected it to serve until this process ends. Export "
            f"again: another one is started. Its last words:\n{self._tail() or '(none)'}"
        )

    def _next_event(self, deadline: float) -> dict[str, Any]:
        stdout = _require(self._process.stdout)
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if not select.select([stdout], [], [], min(left, 1.0))[0]:
                continue
            data = os.read(stdout.fileno(), 65536)
            if not data:
                raise self._ended()
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        event: dict[str, Any] = json.loads(line)
        return event

    def _tail(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-4000:]


_running: list[_Server] = []
# Held while jobs are with the worker.
_turn = threading.Lock()


def _after_fork() -> None:
    """The worker stays the parent's. A thread of the parent that held the lock is not in the child."""
    global _turn
    _turn = threading.Lock()
    while _running:
        _running.pop().leave()


os.register_at_fork(after_in_child=_after_fork)


def _server(cache_dir: pathlib.Path) -> _Server:
    for server in list(_running):
        if server.is_alive() and server.cache_dir == cache_dir:
            return server
        _running.remove(server)
        server.kill()
    server = _Server(cache_dir)
    _running.append(server)
    return server


@atexit.register
def shut_down() -> None:
    """Ends the compile worker, if one runs; the next export starts another."""
    while _running:
        _running.pop().kill()


def default_cache_dir() -> pathlib.Path:
    """Where compiled kernels and graphs are kept: ``$ETCUDA_CACHE_DIR``, else below the user's cache folder."""
    if chosen := os.environ.get("ETCUDA_CACHE_DIR"):
        return pathlib.Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "etcuda" / "triton"


def _cache_folder(options: CompileOptions) -> pathlib.Path:
    return pathlib.Path(options.cache_dir) if options.cache_dir else default_cache_dir()


def _failure(folder: pathlib.Path, label: str, status: int, kills_before: int) -> CompileError:
    log = (folder / "log.txt").read_text(errors="replace") if (folder / "log.txt").exists() else ""
    try:
        report = json.loads((folder / "error.json").read_text())
    except (OSError, ValueError):
        how = describe(status, kills_before)
        return CompileError(
            f"compiling {label}: the process that compiled it ended unexpectedly ({how}). Its last words:\n"
            f"{log[-4000:] or '(none)'}"
        )
    if report["type"] == CompileError.__name__:
        return CompileError(f"compiling {label}: {report['message']}")
    return CompileError(f"compiling {label}: {report['type']}: {report['message']}\n{report['traceback'][-6000:]}")


def import_root() -> pathlib.Path:
    """The folder that etcuda is in, and no other: a module of ours must not be found under its bare name."""
    import etcuda

    return pathlib.Path(_require(etcuda.__file__)).resolve().parent.parent


def _require(value: Any) -> Any:
    assert value is not None
    return value


@contextlib.contextmanager
def _progress(wanted: bool | None, labels: Sequence[str]) -> Iterator[Any]:
    if not (sys.stderr.isatty() if wanted is None else wanted):
        yield lambda *_event: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[phase]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=False) as bars:
        tasks = {label: bars.add_task(f"compiling {label}", total=None, phase="waiting") for label in labels}

        def report(label: str, phase: str, done: int, total: int) -> None:
            bars.update(tasks[label], completed=done, total=total or None, phase=phase)

        yield report

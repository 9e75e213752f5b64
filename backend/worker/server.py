"""The worker process: imports the compilers once, then forks a fresh child for each job.

Reads job folders from standard input, one a line, and writes events to standard output, one JSON object a line. It
ends, with all its children, when standard input closes.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import pathlib
import selectors
import signal
import sys
import tempfile
import traceback

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serves jobs until standard input closes."""
    events = os.dup(1)
    os.dup2(2, 1)  # what libraries print must not mix with events
    _import_compilers()
    _send(events, {"event": "ready"})
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(wake_read, selectors.EVENT_READ)
    children: dict[int, str] = {}
    pending = b""
    while True:
        ready = {key.fd for key, _ in selector.select()}
        if wake_read in ready:
            os.read(wake_read, 4096)
            _reap(children, events)
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                break
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                folder = line.decode()
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    os._exit(_run(pathlib.Path(folder), events))
                children[pid] = folder
    os.killpg(0, signal.SIGKILL)


def _import_compilers() -> None:
    inductor = ("torch._inductor.compile_fx", "torch._inductor.lowering", "triton")
    # The kernels' operators must be known before a program that calls them is loaded.
    for module in (*inductor, "etcuda.kernels", "etcuda.backend.worker.compile"):
        importlib.import_module(module)
    import torch

    torch.set_num_threads(1)


def _reap(children: dict[int, str], events: int) -> None:
    while children:
        with contextlib.suppress(ChildProcessError):
            pid, status, used = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            # With what the compilers took that the child started.
            event = {"event": "end", "job": children.pop(pid), "status": code, "cpu_s": used.ru_utime + used.ru_stime}
            _send(events, event)
            continue
        return


def _run(folder: pathlib.Path, events: int) -> int:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with open(folder / "log.txt", "wb", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        from etcuda.backend.worker.compile import compile_job
        from etcuda.backend.worker.job import read_request, write_result

        build = folder / "build"
        (build / "image").mkdir(parents=True)
        tempfile.tempdir = str(build)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(build / "inductor")
        request = read_request(folder)
        os.environ.pop("CXX", None)
        os.environ.update(request.environment)

        def progress(phase: str, done: int, total: int) -> None:
            _send(events, {"event": "progress", "job": str(folder), "phase": phase, "done": done, "total": total})

        write_result(folder, compile_job(request, build / "image", progress))
    except BaseException as error:  # reported to the parent, which raises it there
        report = {"type": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
        (folder / "error.json").write_text(json.dumps(report))
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _send(events: int, value: dict[str, object]) -> None:
    # Lines shorter than PIPE_BUF reach the reader whole, whoever writes.
    os.write(events, (json.dumps(value) + "\n").encode())


if __name__ == "__main__":
    main()

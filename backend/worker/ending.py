"""How a process ended, in words: its signal or exit code, and whether memory was the reason."""

from __future__ import annotations

import pathlib
import signal

_GROUP = pathlib.Path("/proc/self/cgroup")
_MEMORY = pathlib.Path("/proc/meminfo")
_GIB = float(1 << 30)


def describe(status: int | None, kills_before: int = 0) -> str:
    """Words for a status as ``subprocess`` has it: negative for a signal, ``None`` if the process still runs.

    Args:
        status: of the process.
        kills_before: ``out_of_memory_kills()`` when it began.
    """
    if status is None:
        return "it closed its output and still runs"
    if status >= 0:
        return f"exit code {status}"
    try:
        number = signal.Signals(-status)
    except ValueError:
        return f"signal {-status}"
    text = f"signal {number.value}, {number.name}"
    if number is not signal.SIGKILL:
        return text
    if out_of_memory_kills() > kills_before:
        return f"{text}: out of memory, the system ended it{_room()}"
    return f"{text}: most likely out of memory{_room()}, unless somebody killed it"


def out_of_memory_kills() -> int:
    """Processes of this control group that the system has ended for want of memory; 0 if that is not known."""
    try:
        path = _GROUP.read_text().strip().rpartition("::")[2].lstrip("/")
        for folder in (pathlib.Path("/sys/fs/cgroup") / path, pathlib.Path("/sys/fs/cgroup")):
            events = folder / "memory.events"
            if events.exists():
                counts = dict(line.split() for line in events.read_text().splitlines())
                return int(counts.get("oom_kill", 0))
    except (OSError, ValueError):
        pass
    return 0


def _room() -> str:
    try:
        lines = (line.split() for line in _MEMORY.read_text().splitlines())
        kib = {words[0]: int(words[1]) for words in lines}
        free, total = (kib[name] * 1024 / _GIB for name in ("MemAvailable:", "MemTotal:"))
    except (OSError, ValueError, KeyError, IndexError):
        return ""
    return f" ({free:.1f} of {total:.1f} GiB are free now)"

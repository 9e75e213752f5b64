"""Memory of this process and of all that it started, while it works."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Usage:
    """Bytes in memory.

    Attributes:
        anonymous: of no file, summed over processes; what forked processes share counts once for each.
        total: with mapped files, summed the same way.
        proportional: with mapped files, what several processes share counted once; 0 if it was not asked for.
    """

    anonymous: int = 0
    total: int = 0
    proportional: int = 0

    def greatest(self, other: Usage) -> Usage:
        """The greater of each."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Usage(*(max(pair) for pair in pairs))

    def __str__(self) -> str:
        named = (f"{name} {value / GIB:.2f}" for name, value in dataclasses.asdict(self).items() if value)
        return ", ".join(named) + " GiB"


class PeakMemory:
    """Looks every ``interval_s`` seconds, in a thread, inside of ``with``.

    Args:
        interval_s: between two looks.
        proportional: whether to look at ``Usage.proportional`` too, which takes some milliseconds a process.
        descendants: whether to look at what this process started, too.
    """

    def __init__(self, interval_s: float = 0.02, proportional: bool = False, descendants: bool = True) -> None:
        self._interval_s, self._proportional, self._descendants = interval_s, proportional, descendants
        self._peak = Usage()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def take(self) -> Usage:
        """The peak since the last call."""
        peak, self._peak = self._peak.greatest(usage(self._proportional, self._descendants)), Usage()
        return peak

    def _watch(self) -> None:
        while not self._ended.wait(self._interval_s):
            self._peak = self._peak.greatest(usage(self._proportional, self._descendants))


def usage(proportional: bool = False, descendants: bool = True) -> Usage:
    """Of this process, and its descendants, now."""
    anonymous = total = shared = 0
    for process in _tree(os.getpid()) if descendants else [os.getpid()]:
        # Any of them may end meanwhile.
        with contextlib.suppress(OSError):
            sizes = _sizes(f"/proc/{process}/status")
            anonymous += sizes.get("RssAnon", 0)
            total += sizes.get("VmRSS", 0)
            if proportional:
                shared += _sizes(f"/proc/{process}/smaps_rollup").get("Pss", 0)
    return Usage(anonymous, total, shared)


def _sizes(path: str) -> dict[str, int]:
    with open(path) as file:
        lines = (line.split() for line in file)
        return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


def _tree(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found

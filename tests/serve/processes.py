"""The replicas' processes, as the machine sees them."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable


def replicas() -> dict[int, int]:
    """Process and its parent, Ray's daemon of a node, of each replica."""
    found = {}
    for folder in pathlib.Path("/proc").iterdir():
        try:
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if title.startswith("ray::") and ":replica" in title:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                found[int(folder.name)] = parent
        except (OSError, ValueError):
            continue  # A process that ended meanwhile, or a file that is none.
    return found


def until(holds: Callable[[], bool], what: str, seconds: float = 600.0) -> None:
    """Waits; what does not come fails."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"expected {what} within {seconds:g} s"
        time.sleep(0.1)

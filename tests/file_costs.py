"""What the files of a test run cost in processor time, with the processes they start; a plugin of pytest.

A fixture's cost is that of the file that asks for it first.
"""

from __future__ import annotations

import os
import pathlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

SHOWN = 15
START = "(imports and collection)"
END = "(end)"


def processor_seconds() -> float:
    """Of this process and of all that it started, also of those that still run."""
    own = os.times()
    return own.user + own.system + own.children_user + own.children_system + _of_living_children()


def _of_living_children() -> float:
    """Of processes below this one that nobody waited for yet, as a compile worker; 0 where there is no /proc."""
    ticks = os.sysconf("SC_CLK_TCK")
    below: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            # Behind the name, which may hold anything: state, parent, ...; the 12th to the 15th are times.
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # It has ended.
        below[int(fields[1])].append((int(path.parent.name), sum(map(int, fields[11:15])) / ticks))
    total, waiting = 0.0, [os.getpid()]
    while waiting:
        for child, seconds in below[waiting.pop()]:
            total += seconds
            waiting.append(child)
    return total


class FileCosts:
    """The clock is read when the file changes: a worker of xdist runs most tests of a file one after another."""

    def __init__(self) -> None:
        self.costs: Counter[str] = Counter()
        self._file = START
        self._since = 0.0

    def enter(self, file: str) -> None:
        """What is used from now on is of ``file``."""
        if file != self._file:
            now = processor_seconds()
            # A process whose parent ended before it is counted no more.
            self.costs[self._file] += max(0.0, now - self._since)
            self._file, self._since = file, now


def lines(costs: Counter[str]) -> list[str]:
    """A table of the greatest costs, and of all together."""
    table = [f"{'processor s':>11}  file"]
    table += [f"{seconds:11.1f}  {file}" for file, seconds in costs.most_common(SHOWN)]
    return [*table, f"{sum(costs.values()):11.1f}  in all, for {len(costs)} files"]


_KEY = pytest.StashKey[FileCosts]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_KEY] = FileCosts()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.config.stash[_KEY].enter(item.nodeid.partition("::")[0])
    return (yield)


def pytest_sessionfinish(session: pytest.Session) -> None:
    costs = session.config.stash[_KEY]
    if session.config.pluginmanager.has_plugin("dsession"):
        # Below this process are the workers, which count for themselves.
        own = os.times()
        costs.costs[START] += own.user + own.system
        return
    costs.enter(END)
    # A worker of xdist hands over what it collected.
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["file_costs"] = dict(costs.costs)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    # What a worker that crashed collected is lost.
    node.config.stash[_KEY].costs.update(getattr(node, "workeroutput", {}).get("file_costs", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.section("files that took the most processor time")
    for line in lines(config.stash[_KEY].costs):
        terminalreporter.write_line(line)

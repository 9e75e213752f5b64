"""What the exports of a test run cost, as the exporter logs it; a plugin of pytest that prints the greatest.

Exports in processes that a test starts are not among them.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest

LOGGER = "etcuda.backend.preprocess"
SHOWN = 10

Cost = dict[str, Any]


class ExportCosts(logging.Handler):
    """Collects the cost of every export, with the test that it was for."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.costs: list[Cost] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Notes what the exporter attached to its message."""
        if cost := getattr(record, "export_cost", None):
            # "tests/test_x.py::test_y@group (call)", the group with xdist alone
            test = os.environ.get("PYTEST_CURRENT_TEST", "no test").rpartition(" ")[0].partition("@")[0]
            self.costs.append({**cost, "test": test})


def lines(costs: list[Cost]) -> list[str]:
    """A table of the greatest costs, and of all together."""
    greatest = sorted(costs, key=lambda cost: cost["cpu_seconds"], reverse=True)[:SHOWN]
    table = [f"{'processor s':>11}  {'wall s':>6}  {'target':<8}  test"]
    for cost in greatest:
        table.append(f"{cost['cpu_seconds']:11.1f}  {cost['seconds']:6.1f}  {cost['target']:<8}  {cost['test']}")
    total = sum(cost["cpu_seconds"] for cost in costs)
    return [*table, f"{total:11.1f}  in all, for {len(costs)} exports"]


_KEY = pytest.StashKey[ExportCosts]()


def pytest_configure(config: pytest.Config) -> None:
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.INFO)
    config.stash[_KEY] = ExportCosts()
    logger.addHandler(config.stash[_KEY])


def pytest_unconfigure(config: pytest.Config) -> None:
    logging.getLogger(LOGGER).removeHandler(config.stash[_KEY])


def pytest_sessionfinish(session: pytest.Session) -> None:
    # A worker of xdist hands over what it collected.
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["export_costs"] = session.config.stash[_KEY].costs


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    # What a worker that crashed collected is lost.
    node.config.stash[_KEY].costs += getattr(node, "workeroutput", {}).get("export_costs", [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if costs := config.stash[_KEY].costs:
        terminalreporter.section("exports that took the most processor time")
        for line in lines(costs):
            terminalreporter.write_line(line)

"""The tables of what exports and files cost, as a test run prints them."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

TESTS = r"""
import logging, pytest

@pytest.mark.parametrize("number", range(12))
def test_that_exports(number):
    cost = {"target": "host" if number % 2 else "sm_90", "seconds": 1.5, "cpu_seconds": float(number)}
    logging.getLogger("etcuda.backend.preprocess").info("exported", extra={"export_cost": cost})

def test_that_does_not():
    import subprocess, sys, time
    busy = "import time\nwhile time.process_time() < 1: pass"
    subprocess.run([sys.executable, "-c", busy], check=True)
    # Ended only with this process: counted though nobody waits for it.
    left = subprocess.Popen([sys.executable, "-c", busy + "\nprint('done', flush=True)\ninput()"],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert left.stdout.readline() == b"done\n"
    logging.getLogger("etcuda.backend.preprocess").info("something else")
"""


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "with xdist"])
def test_the_greatest_of_all_workers_are_printed(workers: list[str], tmp_path: pathlib.Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.export_costs",
        "-p",
        "tests.file_costs",
        *workers,
        "test_some.py",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_TESTRUNUID", "PYTEST_ADDOPTS"):
        environment.pop(name, None)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    _, _, of_files = done.stdout.partition("files that took the most processor time")
    (row,) = [line.split() for line in of_files.splitlines() if line.endswith(" test_some.py")]
    assert 2 <= float(row[0]) < 10
    (in_all,) = [line.split() for line in of_files.splitlines() if " in all, for " in line and "files" in line]
    assert float(in_all[0]) >= float(row[0])
    _, _, section = done.stdout.partition("exports that took the most processor time")
    printed = section.splitlines()
    first = next(index for index, line in enumerate(printed) if line.startswith("processor s")) + 1
    table = [line.split() for line in printed[first : first + 11]]
    assert [row[:3] for row in table[:-1]] == [
        [f"{number}.0", "1.5", "host" if number % 2 else "sm_90"] for number in range(11, 1, -1)
    ]
    assert [row[3] for row in table[:-1]] == [f"test_some.py::test_that_exports[{n}]" for n in range(11, 1, -1)]
    assert table[-1] == ["66.0", "in", "all,", "for", "12", "exports"]

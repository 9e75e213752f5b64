"""Prompt and generation rates of a program, measured by the native ``llm_runner``."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
from collections.abc import Sequence
from typing import Any

from etcuda.errors import GenerationError
from etcuda.library import LLM_RUNNER_NAME, find_runner, name_libraries


@dataclasses.dataclass(frozen=True)
class BenchRow:
    """One test at one depth.

    Attributes:
        test: ``"pp512"``, ``"tg128"``, ``"gs128"`` and the like.
        depth: tokens in the cache before it.
        rates: tokens a second of each repetition.
        limit: tokens a second at which weights alone take the memory's bandwidth; ``None`` for prompts, and where the
            bandwidth is not known.
    """

    test: str
    depth: int
    rates: tuple[float, ...]
    limit: float | None

    @property
    def rate(self) -> float:
        """Mean of the repetitions, in tokens a second."""
        return statistics.mean(self.rates)

    @property
    def deviation(self) -> float:
        """Standard deviation of the repetitions; 0 for one."""
        return statistics.stdev(self.rates) if len(self.rates) > 1 else 0.0


@dataclasses.dataclass(frozen=True)
class BenchResult:
    """All tests of one program.

    Attributes:
        rows: test by test, for each depth.
        load_seconds: that the program took to load.
        peak_bytes: most memory in use on the device.
    """

    rows: list[BenchRow]
    load_seconds: float
    peak_bytes: int

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        rows = [dataclasses.asdict(row) | {"rate": row.rate, "deviation": row.deviation} for row in self.rows]
        return {"load_seconds": self.load_seconds, "peak_bytes": self.peak_bytes, "tests": rows}


def measure(
    program: pathlib.Path,
    data_path: pathlib.Path | None,
    tests: Sequence[str],
    depths: Sequence[int],
    repetitions: int,
    bandwidth: float | None,
) -> BenchResult:
    """Measures a program in a process of its own.

    Args:
        program: ``m.pte``.
        data_path: its weights; ``None`` is ``m.ptd`` beside it, if there is one.
        tests: their names.
        depths: tokens in the cache before a test.
        repetitions: of each, after one that is not counted.
        bandwidth: of the device's memory in bytes a second; ``None`` is that of the GPU that the program is made for.

    Raises:
        GenerationError: there is nothing to measure, or ``llm_runner`` failed; the message has its own.
    """
    if not tests or not depths:
        raise GenerationError("bench: expected one test and one depth or more, got none.")
    beside = program.with_suffix(".ptd")
    weights = data_path if data_path is not None else beside if beside.is_file() else None
    command = [str(find_runner(LLM_RUNNER_NAME)), f"--model_path={program}", f"--bench={','.join(tests)}"]
    command += [f"--depth={','.join(map(str, depths))}", f"--repetitions={repetitions}"]
    command += [] if weights is None else [f"--data_path={weights}"]
    environment = dict(os.environ)
    name_libraries(environment)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise GenerationError(f"bench: {program}: {said[-1] if said else f'exit status {done.returncode}'}")
    return read_result(done.stdout, bandwidth)


def read_result(lines: str, bandwidth: float | None) -> BenchResult:
    """What ``llm_runner --bench`` printed: a line of JSON about the program, one for each test, one of the end."""
    head, *tests, end = [json.loads(line) for line in lines.splitlines()]
    read = head["decode_weight_bytes"]
    bandwidth = 1e6 * head["bandwidth_mbs"] if bandwidth is None else bandwidth
    rows = [
        BenchRow(
            test["test"],
            test["depth"],
            tuple(test["tokens"] * 1e9 / ns for ns in test["ns"]),
            bandwidth / read if bandwidth and read and not test["test"].startswith("pp") else None,
        )
        for test in tests
    ]
    return BenchResult(rows, head["load_ns"] * 1e-9, end["peak_bytes"])


def draw(result: BenchResult, path: pathlib.Path) -> None:
    """Draws the rates by depth, one panel for prompts and one for answers, with the limit where it is known.

    Raises:
        GenerationError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise GenerationError(
            "picture: expected the package matplotlib, got none. Run: pip install 'etcuda[plots]'"
        ) from error
    panels = [[row for row in result.rows if row.test.startswith("pp") == is_prompt] for is_prompt in (True, False)]
    panels = [rows for rows in panels if rows]
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for place, rows in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for test in dict.fromkeys(row.test for row in rows):
            line = sorted((row for row in rows if row.test == test), key=lambda row: row.depth)
            rates, deviations = [row.rate for row in line], [row.deviation for row in line]
            axes.errorbar([row.depth for row in line], rates, yerr=deviations, marker="o", capsize=3, label=test)
        if rows[0].limit is not None:
            axes.axhline(rows[0].limit, color="gray", linestyle="--", label="limit of the bandwidth")
        axes.set_xlabel("tokens in the cache")
        axes.set_ylabel("tok/s")
        axes.set_ylim(bottom=0)
        axes.legend()
    figure.savefig(path)

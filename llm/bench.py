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
from etcuda.llm.bandwidth import CacheReads, token_limit


@dataclasses.dataclass(frozen=True)
class BenchRow:
    """One test at one depth.

    Attributes:
        test: ``"pp512"``, ``"tg128"``, ``"gs128"`` and the like.
        depth: tokens in the cache before it.
        rates: tokens a second of each repetition.
        limit: tokens a second at which the weights, keys and values that they read take the memory's bandwidth;
            ``None`` for prompts, and where the bandwidth is not known.
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
    def first_token_ms(self) -> float | None:
        """Of a prompt, milliseconds until its last token's logits are in host memory; ``None`` for others."""
        if not self.test.startswith("pp"):
            return None
        return statistics.mean(1e3 * int(self.test[2:]) / rate for rate in self.rates)

    @property
    def deviation(self) -> float:
        """Standard deviation of the repetitions; 0 for one."""
        return statistics.stdev(self.rates) if len(self.rates) > 1 else 0.0


@dataclasses.dataclass(frozen=True)
class BenchResult:
    """All tests of one program.

    Attributes:
        rows: test by test, for each depth.
        load_seconds: that the program took to load, its driver's context and all weights.
        first_step_seconds: that one step took behind that.
        weight_bytes: of all weights.
        peak_bytes: most memory that etcuda used on the device: weights, caches and what is computed in between.
        gpu_used_bytes: in use on the whole GPU at the end, the driver's own and other programs' too; 0 without one.
    """

    rows: list[BenchRow]
    load_seconds: float
    first_step_seconds: float
    weight_bytes: int
    peak_bytes: int
    gpu_used_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        rows = [
            dataclasses.asdict(row)
            | {"rate": row.rate, "deviation": row.deviation, "first_token_ms": row.first_token_ms}
            for row in self.rows
        ]
        figures = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "rows"}
        return figures | {"tests": rows}


def measure(
    program: pathlib.Path,
    data_path: pathlib.Path | None,
    tests: Sequence[str],
    depths: Sequence[int],
    repetitions: int,
    bandwidth: float | None,
    shorten: bool = False,
) -> BenchResult:
    """Measures a program in a process of its own.

    Args:
        program: ``m.pte``.
        data_path: its weights; ``None`` is ``m.ptd`` beside it, if there is one.
        tests: their names.
        depths: tokens in the cache before a test.
        repetitions: of each, after one to three that are not counted: after two calls of a kind it is a CUDA graph.
        bandwidth: of the device's memory in bytes a second; ``None`` is that of the GPU that the program is made for.
        shorten: tests to what the cache holds.

    Raises:
        GenerationError: there is nothing to measure, or ``llm_runner`` failed; the message has its own.
    """
    if not tests or not depths:
        raise GenerationError("bench: expected one test and one depth or more, got none.")
    if not program.is_file():
        raise GenerationError(f"{program}: expected a program, got no such file. Make one with etcuda export.")
    beside = program.with_suffix(".ptd")
    weights = data_path if data_path is not None else beside if beside.is_file() else None
    command = [str(find_runner(LLM_RUNNER_NAME)), f"--model_path={program}", f"--bench={','.join(tests)}"]
    command += [f"--depth={','.join(map(str, depths))}", f"--repetitions={repetitions}"]
    command += ["--shorten"] if shorten else []
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
    weights, reads = head["decode_weight_bytes"], CacheReads.from_numbers(head["cache_reads"])
    bandwidth = 1e6 * head["bandwidth_mbs"] if bandwidth is None else bandwidth

    def limit(test: dict[str, Any]) -> float | None:
        if test["test"].startswith("pp"):
            return None
        # In the middle of the answer.
        return token_limit(bandwidth, weights, reads, test["depth"] + (test["tokens"] - 1) / 2) or None

    rows = [
        BenchRow(
            test["test"],
            test["depth"],
            tuple(test["tokens"] * 1e9 / ns for ns in test["ns"]),
            limit(test),
        )
        for test in tests
    ]
    load, first_step = head["load_ns"] * 1e-9, head["first_step_ns"] * 1e-9
    return BenchResult(rows, load, first_step, head["weight_bytes"], end["peak_bytes"], end.get("gpu_used_bytes", 0))


def draw(result: BenchResult, path: pathlib.Path) -> None:
    """Draws the rates by depth, one panel for prompts and one for answers, with the limit where it is known.

    Raises:
        GenerationError: matplotlib is not installed, or the file cannot be written.
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
        limits = sorted((row.depth, row.limit) for row in rows if row.test == rows[0].test and row.limit is not None)
        if limits:
            axes.plot(*zip(*limits, strict=True), "--_", color="gray", label="limit of the bandwidth")
        axes.set_xlabel("tokens in the cache")
        axes.set_ylabel("tok/s")
        axes.set_ylim(bottom=0)
        axes.legend()
    try:
        figure.savefig(path)
    except (ValueError, OSError) as error:
        raise GenerationError(
            f"picture: {path}: expected the path of a .png or .svg file that can be written, got: {error}."
        ) from error

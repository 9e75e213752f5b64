"""Measures a kernel family's configurations on the local GPU and writes its table: ``etcuda tune FAMILY``.

Candidates are compiled and checked in processes of their own, many at a time. One that does not compile, does not fit
or computes something else is rejected, with the reason. The others are timed, the best ones longer.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import math
import multiprocessing
import os
import pathlib
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import triton

from etcuda.errors import KernelArgumentError, OptionError, SaveError
from etcuda.kernels.common import registry
from etcuda.kernels.common.device import LocalDevice, supports_pdl
from etcuda.kernels.common.tables import Entry, Table
from etcuda.kernels.common.timing import Timer
from etcuda.kernels.common.tuning import Job, Tuning

_SAVE_EVERY_S = 20.0
_REPETITIONS = 3
# So many of the best are tried in their variants, and so many are timed longer.
_VARIED = 3
_FINALISTS = 4
_LONGER = 9


@dataclasses.dataclass(frozen=True)
class TuneOptions:
    """What a run depends on.

    Attributes:
        arch: architecture that the local GPU must have, ``sm_90``; ``None`` for whichever it is.
        out: the table to write; ``None`` for the one that export reads, which is not overwritten unless ``resume`` is
            given.
        resume: a table whose entries are kept and not measured again.
        budget_s: seconds after which no problem is started; what was measured until then is written.
        jobs: processes that compile.
        only: one kernel of the family alone.
    """

    arch: str | None = None
    out: pathlib.Path | None = None
    resume: pathlib.Path | None = None
    budget_s: float = math.inf
    jobs: int = min(14, os.cpu_count() or 1)
    only: str | None = None


def families() -> tuple[str, ...]:
    """Names of the kernel families that can be tuned."""
    return tuple(sorted(_tunings()))


def run(family: str, options: TuneOptions) -> int:
    """Measures a family and writes its table; returns the exit status.

    Raises:
        OptionError: an option has a value that the family does not take, or there is nothing to resume from.
        KernelArgumentError: there is no GPU, it is of another architecture, or ``resume`` is no table.
        SaveError: the table cannot be written; it is tried before anything is measured.
    """
    started = time.monotonic()
    tuning = _find(family)
    groups = _groups(tuning, options.only)
    device = LocalDevice.current()
    if options.arch not in (None, device.arch):
        raise KernelArgumentError(
            f"tune: --arch: expected the local GPU's, {device.arch}, got {options.arch}. Run it on a {options.arch}."
        )
    out = _destination(tuning, device.arch, options)
    kept = () if options.resume is None else _read(tuning, options.resume, device.arch).entries
    prepare(out)
    tuner = Tuner(tuning, device, started + options.budget_s, options.jobs)
    entries = tuner.measure_all(groups, kept, out)
    measured = {(entry.kernel, entry.problem) for entry in entries}
    wanted = [each in measured for group in groups for each in group]
    print(f"{sum(wanted)} of {len(wanted)} shapes in {out}, {time.monotonic() - started:.0f} s")
    return 0


class Tuner:
    """Measures the problems of a family until the time is up.

    Args:
        tuning: the family.
        device: the local GPU.
        deadline: ``time.monotonic()`` at which no further problem is started.
        jobs: processes that compile.
    """

    def __init__(self, tuning: Tuning[Any, Any, Any], device: LocalDevice, deadline: float, jobs: int) -> None:
        self.tuning = tuning
        self.device = device
        self.deadline = deadline
        self.jobs = jobs
        self.timer = Timer()
        self.pdl = int(tuning.table_format.pdl and supports_pdl(device))
        self.rejected: dict[Job[Any, Any, Any], str] = {}

    def measure_all(
        self,
        groups: Sequence[Sequence[tuple[Any, Any]]],
        kept: Iterable[Entry[Any, Any, Any]],
        out: pathlib.Path,
    ) -> list[Entry[Any, Any, Any]]:
        """Measures what ``kept`` lacks and writes both to ``out``, now and then and at the end; returns the entries.

        Entries that were launched otherwise are kept beside new ones, and not returned.
        """
        kept = list(kept)
        others = [entry for entry in kept if entry.pdl != self.pdl]
        entries = {(entry.kernel, entry.problem): entry for entry in kept if entry.pdl == self.pdl}
        environment_ = environment(self.device, self.tuning.timing)

        def write() -> None:
            table = Table(self.device.arch, environment_, (*entries.values(), *others))
            save(out, self.tuning.table_format.to_json(table))

        saved = time.monotonic()
        for group in groups:
            work = [each for each in group if each not in entries]
            if not work or self._is_late():
                continue
            self.compile(work)
            for kernel, problem in work:
                if self._is_late():
                    break
                entry = self.measure(kernel, problem)
                where = f"{kernel} {self.tuning.describe(problem)}"
                if entry is None:
                    print(f"{where}: no configuration fits", file=sys.stderr)
                    continue
                entries[kernel, problem] = entry
                print(f"{where}: {entry.us:.2f} us {entry.best}", flush=True)
                if time.monotonic() - saved > _SAVE_EVERY_S:
                    write()
                    saved = time.monotonic()
        write()
        return list(entries.values())

    def candidates(self, kernel: Any, problem: Any) -> list[Any]:
        """Configurations to measure: those that were not rejected."""
        found = self.tuning.candidates(kernel, problem, self.device)
        return [config for config in found if self.tuning.job(kernel, problem, config) not in self.rejected]

    def compile(self, work: Sequence[tuple[Any, Any]]) -> None:
        """Compiles and checks what the problems need, in parallel; what fails is left out from then on."""
        jobs = dict.fromkeys(self.tuning.job(k, p, config) for k, p in work for config in self.candidates(k, p))
        jobs |= dict.fromkeys(job for k, p in work for job in self.tuning.variant_jobs(k, p, self.device))
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.jobs, mp_context=context) as pool:
            reasons = pool.map(check, [self.tuning] * len(jobs), jobs, chunksize=2)
            for job, reason in zip(jobs, reasons, strict=True):
                if reason is not None:
                    self.rejected[job] = reason
                    print(f"rejected {job.config} of {job.kernel} at {job.problem}: {reason}", file=sys.stderr)
        print(f"compiled {len(jobs)} configurations, {len(self.rejected)} rejected so far", flush=True)

    def measure(self, kernel: Any, problem: Any) -> Entry[Any, Any, Any] | None:
        """Times every candidate and the best ones' variants; the best of all once more, longer."""
        num_sets = self.tuning.num_sets(problem)
        num_calls = self.tuning.num_calls(problem, num_sets)
        inputs = self.tuning.make_inputs(kernel, problem, num_sets)

        def time_us(config: Any, repetitions: int) -> float:
            def call(index: int) -> object:
                return self.tuning.call(kernel, problem, config, inputs, index % num_sets)

            call(0)
            return self.timer.graph_us(call, num_calls, repetitions).median_us

        measured = {config: time_us(config, _REPETITIONS) for config in self.candidates(kernel, problem)}
        for config in sorted(measured, key=measured.__getitem__)[:_VARIED]:
            for other in self.tuning.variants(problem, config):
                if other not in measured:
                    measured[other] = time_us(other, _REPETITIONS)
        for config in sorted(measured, key=measured.__getitem__)[:_FINALISTS]:
            measured[config] = time_us(config, _LONGER)
        rows = sorted(measured.items(), key=lambda row: row[1])
        return Entry(kernel, problem, tuple(rows), self.pdl) if rows else None

    def _is_late(self) -> bool:
        return time.monotonic() >= self.deadline


def check(tuning: Tuning[Any, Any, Any], job: Job[Any, Any, Any]) -> str | None:
    """Compiles a configuration and compares what it computes with what is expected; the reason if it is no good."""
    torch.manual_seed(0)
    inputs = tuning.make_inputs(job.kernel, job.problem, 1)
    try:
        got = tuning.result(tuning.call(job.kernel, job.problem, job.config, inputs, 0)).double()
        if got.is_cuda:
            torch.cuda.synchronize()
    except Exception as error:  # A configuration that does not compile or fit is an answer, not a failure.
        return f"{type(error).__name__}: {str(error)[:120]}"
    expected = tuning.expected(job.kernel, job.problem, inputs).double()
    relative = float((got - expected).norm() / expected.norm())
    return None if relative < tuning.most_error else f"relative error {relative:.2e}"


def environment(device: LocalDevice, timing: str) -> dict[str, object]:
    """What figures were measured on, and how, for the record beside them."""
    return {
        "gpu": torch.cuda.get_device_name(0),
        "num_sms": device.num_sms,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "timing": timing,
    }


def save(path: pathlib.Path, text: str) -> None:
    """Writes a file under a temporary name beside it, and renames that; makes the folder.

    Raises:
        SaveError: it cannot be written.
    """
    partial = _partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text)
        os.replace(partial, path)
    except OSError as error:
        raise _unwritable(path, error) from error


def prepare(path: pathlib.Path) -> None:
    """Checks that ``save`` can write a file there, and leaves what is there as it is.

    Raises:
        SaveError: it cannot.
    """
    partial = _partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(21, "Is a directory")
        partial.write_text("")
        partial.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def _partial(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".partial")


def _unwritable(path: pathlib.Path, error: OSError) -> SaveError:
    return SaveError(
        f"tune: --out: expected a file that can be written, got {path} ({error.strerror}). Name another with --out."
    )


def _tunings() -> dict[str, Tuning[Any, Any, Any]]:
    importlib.import_module("etcuda.kernels")
    found = (record.tuning for record in registry.records())
    return {tuning.family: tuning for tuning in found if tuning is not None}


def _find(family: str) -> Tuning[Any, Any, Any]:
    known = _tunings()
    if family not in known:
        raise OptionError(f"tune: expected one of the kernel families {', '.join(sorted(known))}, got {family!r}.")
    return known[family]


def _groups(tuning: Tuning[Any, Any, Any], only: str | None) -> list[list[tuple[Any, Any]]]:
    """The problems, those of one kernel alone if it is named."""
    if only is not None and only not in tuning.kernels:
        names = " or ".join(map(repr, tuning.kernels))
        raise OptionError(f"tune: --only: expected a kernel of {tuning.family}, {names}, got {only!r}.")
    chosen = ([each for each in group if only in (None, each[0])] for group in tuning.problems())
    return [group for group in chosen if group]


def _destination(tuning: Tuning[Any, Any, Any], arch: str, options: TuneOptions) -> pathlib.Path:
    if options.out is not None:
        return options.out
    path = tuning.table_format.path(arch)
    if path.exists() and options.resume is None:
        raise OptionError(
            f"tune: --out: expected a file to write, for {path} holds a table; got none. "
            f"Pass --resume {path} to keep its entries and measure the others, or --out to write elsewhere or anew."
        )
    return path


def _read(tuning: Tuning[Any, Any, Any], path: pathlib.Path, arch: str) -> Table[Any, Any, Any]:
    try:
        text = path.read_text()
    except OSError as error:
        raise OptionError(
            f"tune: --resume: expected a table to read, got {path} ({error.strerror}). Leave it out to begin anew."
        ) from error
    table = tuning.table_format.from_json(text, str(path))
    if table.arch != arch:
        raise KernelArgumentError(
            f"tune: --resume: expected a table of the local GPU's architecture, {arch}, got one of {table.arch} in "
            f"{path}. Leave it out to begin anew."
        )
    return table

"""Tries cases of the suite: several in one export, apart where that fails."""

from __future__ import annotations

import dataclasses
import multiprocessing
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch
from torch import Tensor

from examples.cpp.session import run_all_outputs
from examples.models import Call
from tests.suite.accuracy import expected_of, wrong_because
from tests.suite.batch import batch_inputs, lower
from tests.suite.cases import MODEL_FILES, SuiteCase, cases_of, negated
from tests.suite.records import CaseRecord, Records

# Runs a program once: its file, the inputs, tensors like its outputs.
Execute = Callable[[pathlib.Path, list[Tensor], list[Tensor]], list[Tensor]]


def in_python(path: pathlib.Path, inputs: list[Tensor], like: list[Tensor]) -> list[Tensor]:
    """In ExecuTorch's Python runtime."""
    from executorch.runtime import Runtime

    import etcuda.runtime  # noqa: F401  (registers the delegate)

    program = Runtime.get().load_program(path)
    return [output.clone() for output in program.load_method("forward").execute(inputs)]


def in_program(program: pathlib.Path) -> Execute:
    """In the built ``run_session``, which needs no release of torch."""

    def execute(path: pathlib.Path, inputs: list[Tensor], like: list[Tensor]) -> list[Tensor]:
        return run_all_outputs(program, path, [Call("forward", tuple(inputs))], [like])[0]

    return execute


def try_cases(
    cases: Sequence[SuiteCase], target: str, folder: pathlib.Path, execute: Execute | None
) -> dict[str, CaseRecord]:
    """Exports the cases for ``target`` as one program and runs it, or only exports it where ``execute`` is None.

    Where something fails for several cases together, those that are delegated whole are tried without the others, and
    the others are not run; where that is no help, each half is tried by itself.
    """
    path = folder / f"{cases[0].file}-{cases[0].index}-{len(cases)}.pte"
    exported = False
    left: tuple[tuple[str, ...], ...] = ((),) * len(cases)
    try:
        lowered = lower(cases, target, path)
        left, exported = lowered.left, True
        if execute is None:
            return {case.key: CaseRecord(left[i], exported=True) for i, case in enumerate(cases)}
        expected = [expected_of(case) for case in cases]
        like = [tensor for eager, _ in expected for tensor in eager]
        outputs = execute(path, list(batch_inputs(cases)), like)
        if len(outputs) != len(like):
            raise RuntimeError(f"expected {len(like)} outputs, got {len(outputs)}")
    except Exception as error:
        if len(cases) == 1:
            return {
                cases[0].key: CaseRecord(
                    left[0], error=f"{type(error).__name__}: {shortened(error)}", exported=exported
                )
            }
        partly = {case.key: CaseRecord(left[i], exported=True) for i, case in enumerate(cases) if left[i]}
        if partly:
            whole = [case for case in cases if case.key not in partly]
            return partly | (try_cases(whole, target, folder, execute) if whole else {})
        middle = len(cases) // 2
        first, second = cases[:middle], cases[middle:]
        return try_cases(first, target, folder, execute) | try_cases(second, target, folder, execute)
    finally:
        path.unlink(missing_ok=True)
    records = {}
    for case, (eager, wide), rest in zip(cases, expected, left, strict=True):
        slack = 10.0 if case.file in MODEL_FILES else 1.0
        got, outputs = outputs[: len(eager)], outputs[len(eager) :]
        records[case.key] = CaseRecord(rest, wrong=wrong_because(got, eager, wide, slack), exported=True, ran=True)
    return records


def shortened(error: BaseException, most: int = 300) -> str:
    """What an error says, in one line of that many characters at most."""
    words = " ".join(str(error).split())
    return words if len(words) <= most else words[: most // 2] + " ... " + words[-most // 2 :]


def batches(keys: Iterable[str], size: int) -> Iterator[list[str]]:
    """Keys in batches of at most ``size``; of long cases (LSTM) 4, apart from the others, and of models one."""
    now: list[str] = []
    for key in keys:
        most = min(size, most_together(key))
        if now and (len(now) >= most or most_together(now[0]) != most_together(key)):
            yield now
            now = []
        now.append(key)
    if now:
        yield now


def most_together(key: str) -> int:
    """How many cases like this one may share an export."""
    file = key.split("::")[0]
    return 1 if file in MODEL_FILES else 4 if file == "lstm" else 1000


@dataclasses.dataclass(frozen=True)
class Task:
    """What to try, in words that another process understands.

    Attributes:
        keys: of the cases.
        dtype: name of their dtype.
        target: what to export for.
        program: ``run_session``; None for the Python runtime on the host, and on a GPU to export only.
        negate: whether the results are negated.
    """

    keys: tuple[str, ...]
    dtype: str
    target: str
    program: pathlib.Path | None = None
    negate: bool = False


def try_task(task: Task) -> dict[str, CaseRecord]:
    """Makes the cases again and tries them."""
    torch.set_num_threads(1)
    if task.program is not None:
        execute: Execute | None = in_program(task.program)
    else:
        execute = in_python if task.target == "host" else None
    with tempfile.TemporaryDirectory() as folder:
        cases = find_cases(task.keys, getattr(torch, task.dtype))
        return try_cases(
            [negated(case) if task.negate else case for case in cases], task.target, pathlib.Path(folder), execute
        )


def find_cases(keys: Sequence[str], dtype: torch.dtype) -> list[SuiteCase]:
    """The cases with these keys, in their order."""
    wanted: dict[str, set[str]] = {}
    for key in keys:
        file, rest = key.split("::", 1)
        wanted.setdefault(file, set()).add(rest.rsplit("#", 1)[0])
    found = {case.key: case for file, tests in wanted.items() for case in cases_of(file, dtype, only=tests)}
    return [found[key] for key in keys]


def try_tasks(
    tasks: Sequence[Task], jobs: int, until: float | None = None
) -> Iterator[tuple[Task, dict[str, CaseRecord]]]:
    """Every task, ``jobs`` of them at a time in processes of their own; in this one where that is 1.

    Args:
        tasks: what to try.
        jobs: how many at a time.
        until: a time of ``time.monotonic``.

    Raises:
        TimeoutError: it is past ``until``. What was begun in other processes is ended.
    """
    if jobs == 1:
        for task in tasks:
            if until is not None and time.monotonic() >= until:
                raise TimeoutError
            yield task, try_task(task)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        pending = {pool.submit(try_task, task): task for task in tasks}
        try:
            for done in as_completed(pending, None if until is None else max(0.0, until - time.monotonic())):
                yield pending[done], done.result()
        except TimeoutError:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def run_all(
    keys: Sequence[str], task: Task, records: Records, jobs: int = 1, size: int = 24, until: float | None = None
) -> None:
    """Tries every case that has no record yet, then those that are not delegated whole with a negation.

    A batch that ended the process before is tried in smaller ones.

    Args:
        keys: of the cases.
        task: how to try them.
        records: what there is; grows and is written after every batch.
        jobs: batches at a time.
        size: cases of a batch.
        until: a time of ``time.monotonic``, after which nothing more is begun and what other processes do is dropped.
    """
    if len(records.begun) == 1:
        records.end({records.begun[0]: CaseRecord(error="the process ended")})
    suspects = set(records.begun)
    todo = [key for key in keys if key not in records.cases]
    groups = list(batches([key for key in todo if key in suspects], max(1, len(suspects) // 4)))
    groups += list(batches([key for key in todo if key not in suspects], size))
    if todo:
        releases = {torch.__version__, *filter(None, records.facts.get("torch", "").split(", "))}
        records.facts["torch"] = ", ".join(sorted(releases))
    try:
        _try_groups(groups, task, records, jobs, len(keys), until)
        _try_negated(keys, task, records, jobs, size, until)
    except TimeoutError:
        missing = sum(key not in records.cases for key in keys)
        print(f"{task.target}: the time is up; {missing} of {len(keys)} cases have no record yet", flush=True)
    for key in keys:
        record = records.cases.get(key)
        if record is not None and record.verdict not in ("right", "exported"):
            print(f"{key}: {record.verdict}. {record.error or record.wrong or ', '.join(record.left)}", flush=True)


def _try_groups(
    groups: Sequence[list[str]], task: Task, records: Records, jobs: int, number: int, until: float | None
) -> None:
    """Every batch; what is begun in this process is noted, for it may end it."""
    tasks = [dataclasses.replace(task, keys=tuple(group)) for group in groups]
    if jobs == 1:
        for each in tasks:
            if until is not None and time.monotonic() >= until:
                raise TimeoutError
            records.begin(each.keys)
            records.end(try_task(each))
            print(f"{task.target}: {len(records.cases)} of {number} cases; to {each.keys[-1]}", flush=True)
        return
    for done, found in try_tasks(tasks, jobs, until):
        records.end(found)
        print(f"{task.target}: {len(records.cases)} of {number} cases; with {done.keys[0]}", flush=True)


def _try_negated(keys: Sequence[str], task: Task, records: Records, jobs: int, size: int, until: float | None) -> None:
    """Cases that are not delegated whole, with a negation of their results."""
    parts = [key for key in keys if records.cases[key].left and key not in records.stubborn]
    again = [dataclasses.replace(task, keys=tuple(group), negate=True) for group in batches(parts, size)]
    for done, found in try_tasks(again, jobs, until):
        for key, record in found.items():
            if record.left or record.error:
                records.stubborn.append(key)
            else:
                record.moves_only = True
                records.cases[key] = record
        records.save()
        print(f"{task.target}: with a negation, {done.keys[0]} to {done.keys[-1]}", flush=True)

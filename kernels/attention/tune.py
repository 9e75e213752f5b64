"""Measures every candidate configuration on the local GPU and writes the table: ``etcuda tune attention``."""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import datetime
import math
import multiprocessing
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import torch
import triton
from torch import Tensor

from etcuda.errors import KernelArgumentError
from etcuda.kernels.attention.configs import (
    SplitConfig,
    merge_candidates,
    section_candidates,
    split_candidates,
    tiled_candidates,
    with_merge,
)
from etcuda.kernels.attention.problem import AttentionProblem
from etcuda.kernels.attention.reference import attention_reference
from etcuda.kernels.attention.shapes import Family, split_problems, tiled_problems
from etcuda.kernels.attention.table import Config, Entry, KernelName, Table, from_json, to_json
from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.common.timing import Timer

_COLD_BYTES = 200 << 20
_SAVE_EVERY_S = 20.0
_MOST_ERROR = 1e-2
# Keys of the small problem on which a configuration is compiled and checked. All tuned lengths are multiples of 16, as
# this is, so that the compiled kernel is the same.
_CHECK_KEYS = 256


def call_kernel(
    kernel: KernelName, problem: AttentionProblem, config: Config, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """Runs a problem without tensors for masking on given tensors."""
    from etcuda.kernels.attention.op import attention_split, attention_tiled

    op: Callable[..., Tensor] = attention_split if kernel == "split" else attention_tiled
    scale = problem.scale or problem.head_dim**-0.5
    result: Tensor = op(
        q, k, v, None, None, None, scale, problem.causal, problem.window, 0.0, *dataclasses.astuple(config)
    )
    return result


def make_inputs(problem: AttentionProblem, sets: int = 1) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Random queries, and so many sets of keys and values."""
    width, dtype = problem.head_dim, problem.dtype
    q = torch.randn(problem.batch, problem.num_heads, problem.l_q, width, dtype=dtype, device="cuda")
    shape = (problem.batch, problem.num_kv_heads, problem.l_kv, width)
    make: Callable[[], Tensor] = lambda: torch.randn(shape, dtype=dtype, device="cuda")  # noqa: E731
    return q, [make() for _ in range(sets)], [make() for _ in range(sets)]


def check_config(job: tuple[KernelName, AttentionProblem, Config]) -> str | None:
    """Compiles a configuration and compares it with the reference on a small problem; the reason if it is no good."""
    kernel, problem, config = job
    l_q = min(problem.l_q, _CHECK_KEYS)
    small = dataclasses.replace(problem, batch=1, l_q=l_q, l_kv=_CHECK_KEYS, window=problem.window)
    torch.manual_seed(0)
    q, (k,), (v,) = make_inputs(small)
    try:
        got = call_kernel(kernel, small, config, q, k, v).double()
    except Exception as error:  # a configuration that does not fit is an answer, not a failure
        return f"{type(error).__name__}: {str(error)[:120]}"
    expected = attention_reference(q.double(), k.double(), v.double(), causal=small.causal, window=small.window)
    relative = float((got - expected).norm() / expected.norm())
    return None if relative < _MOST_ERROR else f"relative error {relative:.2e}"


class Tuner:
    """Measures problems until the time is up.

    Args:
        device: the local GPU.
        deadline: ``time.monotonic()`` at which no further problem is started.
        jobs: processes that compile.
    """

    def __init__(self, device: LocalDevice, deadline: float, jobs: int) -> None:
        self.device = device
        self.deadline = deadline
        self.jobs = jobs
        self.timer = Timer()
        self.rejected: dict[tuple[KernelName, AttentionProblem, Config], str] = {}

    def candidates(self, kernel: KernelName, problem: AttentionProblem) -> list[Config]:
        """Configurations to measure."""
        listed = split_candidates if kernel == "split" else tiled_candidates
        return [c for c in listed(problem, self.device) if _compiled(kernel, problem, c) not in self.rejected]

    def compile(self, work: list[tuple[KernelName, AttentionProblem]]) -> None:
        """Compiles what the problems need, in parallel; configurations that fail are left out from then on."""
        jobs = dict.fromkeys(_compiled(k, p, c) for k, p in work for c in self.candidates(k, p))
        jobs |= dict.fromkeys(job for k, p in work if k == "split" for job in _merges(p, self.device))
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(self.jobs, mp_context=context) as pool:
            for job, reason in zip(jobs, pool.map(check_config, jobs, chunksize=4), strict=True):
                if reason is not None:
                    self.rejected[job] = reason
        print(f"compiled {len(jobs)} configurations, {len(self.rejected)} rejected so far", flush=True)

    def measure(self, kernel: KernelName, problem: AttentionProblem) -> Entry | None:
        """Times every candidate; of the best, also what needs no other compilation."""
        nbytes = 2 * problem.batch * problem.num_kv_heads * problem.l_kv * problem.head_dim * problem.dtype.itemsize
        sets = max(2, min(64, math.ceil(_COLD_BYTES / nbytes)))
        q, keys, values = make_inputs(problem, sets)

        def timed(config: Config, repetitions: int) -> float:
            def run(index: int) -> object:
                return call_kernel(kernel, problem, config, q, keys[index % sets], values[index % sets])

            run(0)
            calls = max(sets, 4) if problem.l_q > 64 or nbytes > _COLD_BYTES else max(sets, 24)
            return self.timer.graph_us(run, calls, repetitions).median_us

        measured = {config: timed(config, 3) for config in self.candidates(kernel, problem)}
        if not measured:
            return None
        ranked = sorted(measured, key=measured.__getitem__)
        for config in ranked[:3]:
            for other in _variants(problem, config):
                if other not in measured:
                    measured[other] = timed(other, 3)
        for config in sorted(measured, key=measured.__getitem__)[:4]:
            measured[config] = timed(config, 9)
        rows = sorted(measured.items(), key=lambda row: row[1])
        return Entry(kernel, problem, tuple(rows))


def _variants(problem: AttentionProblem, config: Config) -> Sequence[Config]:
    """Other reductions of the split kernel, other sections of the tiled one."""
    if isinstance(config, SplitConfig):
        return merge_candidates(problem, config)
    return section_candidates(problem, config)


def _compiled(
    kernel: KernelName, problem: AttentionProblem, config: Config
) -> tuple[KernelName, AttentionProblem, Config]:
    """What tells one compiled kernel from another: lengths, batch and the number of parts do not."""
    few = problem.l_q if kernel == "split" or problem.l_q < _CHECK_KEYS else _CHECK_KEYS
    same = dataclasses.replace(problem, batch=1, l_q=few, l_kv=_CHECK_KEYS)
    if isinstance(config, SplitConfig):
        config = with_merge(same, dataclasses.replace(config, num_splits=4), 64)
    else:
        same = dataclasses.replace(same, num_heads=2, num_kv_heads=1)
        config = dataclasses.replace(config, section=2)
    return kernel, same, config


def _merges(problem: AttentionProblem, device: LocalDevice) -> Iterator[tuple[KernelName, AttentionProblem, Config]]:
    """One job for every compiled reduction that measuring the problem may need."""
    _, same, base = _compiled("split", problem, split_candidates(problem, device)[0])
    assert isinstance(base, SplitConfig)
    same = dataclasses.replace(same, num_heads=same.group, num_kv_heads=1)
    for num_splits in (2, 4, 8, 16, 32, 64, 128):
        for config in merge_candidates(same, dataclasses.replace(base, num_splits=num_splits)):
            yield "split", same, config


def environment(device: LocalDevice) -> dict[str, object]:
    """What the figures were measured on."""
    return {
        "gpu": torch.cuda.get_device_name(0),
        "num_sms": device.num_sms,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "timing": "microseconds per call in a CUDA graph, keys and values not in the L2 cache, median",
    }


def save(path: pathlib.Path, table: Table) -> None:
    """Writes the table to a temporary name and renames it."""
    partial = path.with_suffix(".partial")
    partial.write_text(to_json(table))
    os.replace(partial, path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--arch", required=True, help="architecture of the local GPU, sm_90; the table is for it")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the table to write")
    parser.add_argument("--resume", type=pathlib.Path, help="a table whose entries are kept and not measured again")
    parser.add_argument("--budget-s", type=float, default=math.inf, help="seconds after which no shape is started")
    parser.add_argument("--jobs", type=int, default=min(14, os.cpu_count() or 1), help="processes that compile")
    parser.add_argument("--only", choices=("split", "tiled"), help="one kernel alone")


def tune(arguments: argparse.Namespace) -> int:
    """Measures and writes the table; what was measured before the time was up is written.

    Raises:
        KernelArgumentError: there is no GPU, or it is not of the architecture named.
    """
    started = time.monotonic()
    device = LocalDevice.current()
    if device.arch != arguments.arch:
        raise KernelArgumentError(
            f"tune: --arch: expected the local GPU's, {device.arch}, got {arguments.arch}. "
            f"Run it on a {arguments.arch}."
        )
    entries: dict[tuple[KernelName, AttentionProblem], Entry] = {}
    if arguments.resume is not None:
        kept = from_json(arguments.resume.read_text(), str(arguments.resume))
        entries = {(entry.kernel, entry.problem): entry for entry in kept.entries}
    tuner = Tuner(device, started + arguments.budget_s, arguments.jobs)
    saved = time.monotonic()
    for group in _groups(arguments.only):
        work = [(kernel, problem) for kernel, _, problem in group if (kernel, problem) not in entries]
        if not work or time.monotonic() > tuner.deadline:
            continue
        tuner.compile(work)
        for kernel, family, problem in group:
            if (kernel, problem) in entries or time.monotonic() > tuner.deadline:
                continue
            entry = tuner.measure(kernel, problem)
            if entry is None:
                print(f"{kernel} {family.name}: no configuration fits", file=sys.stderr)
                continue
            entries[kernel, problem] = entry
            _print(family, entry)
            if time.monotonic() - saved > _SAVE_EVERY_S:
                save(arguments.out, Table(device.arch, environment(device), tuple(entries.values())))
                saved = time.monotonic()
    save(arguments.out, Table(device.arch, environment(device), tuple(entries.values())))
    wanted = sum(len(group) for group in _groups(arguments.only))
    print(f"{len(entries)} of {wanted} shapes in {arguments.out}, {time.monotonic() - started:.0f} s")
    return 0


def _groups(only: KernelName | None) -> Iterator[list[tuple[KernelName, Family, AttentionProblem]]]:
    """Problems in groups that are compiled together, the most important first."""
    split: list[tuple[KernelName, Family, AttentionProblem]] = [("split", f, p) for f, p in split_problems()]
    tiled: list[tuple[KernelName, Family, AttentionProblem]] = [("tiled", f, p) for f, p in tiled_problems()]
    groups = [split[:36], tiled[:24], split[36:60], tiled[24:], split[60:]]
    for group in groups:
        chosen = [each for each in group if only in (None, each[0])]
        if chosen:
            yield chosen


def _print(family: Family, entry: Entry) -> None:
    problem = entry.problem
    shape = f"batch {problem.batch} L_q {problem.l_q} L_kv {problem.l_kv} window {problem.window}"
    print(f"{entry.kernel} {family.name} {shape}: {entry.us:.2f} us {entry.best}", flush=True)

"""Measures every candidate configuration on the local GPU and writes the table: ``etcuda tune int4``, ``... int8``."""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import datetime
import itertools
import math
import multiprocessing
import os
import pathlib
import platform
import sys
import time

import torch
import triton
from torch import Tensor

from etcuda.errors import KernelArgumentError
from etcuda.kernels.common.device import LocalDevice, supports_pdl
from etcuda.kernels.common.timing import Timer
from etcuda.kernels.formats.base import GroupFormat
from etcuda.kernels.formats.int4 import Int4Format
from etcuda.kernels.linear.check import Stored
from etcuda.kernels.linear.choose.configs import MatmulConfig, MatvecConfig, matmul_candidates, matvec_candidates
from etcuda.kernels.linear.choose.select import run_config
from etcuda.kernels.linear.choose.shapes import problems
from etcuda.kernels.linear.choose.table import Config, Entry, KernelName, Table, from_json, to_json
from etcuda.kernels.linear.problem import LinearProblem

Job = tuple[KernelName, LinearProblem, Config]
_COLD_BYTES = 160 << 20
_MOST_SETS = 96
_SAVE_EVERY_S = 20.0
_MOST_ERROR = 1e-2
# Rows of the small weight on which a configuration is compiled and checked: all tuned sizes are multiples of 16, as it
# is, so that the compiled kernel is the same.
_CHECK_ROWS = 512


def make_weight(problem: LinearProblem, rows: int) -> tuple[GroupFormat, Stored]:
    """A random weight of so many rows on the GPU."""
    form = format_of(problem)
    parts: dict[str, Tensor] = {}
    for name, (shape, dtype) in form.components(rows, problem.k).items():
        if dtype == torch.int8:
            parts[name] = torch.randint(-128, 128, shape, dtype=dtype, device="cuda")
        elif dtype == torch.uint8:
            low, high = (0, 256) if name == "qdata" else (4, 12)
            parts[name] = torch.randint(low, high, shape, dtype=dtype, device="cuda")
        else:
            parts[name] = torch.empty(shape, dtype=dtype, device="cuda").uniform_(0.005, 0.015)
    qdata, scale = parts["qdata"], parts["scale"]
    return form, (qdata, scale, parts.get("zero"), parts.get("scale_step"), parts.get("zero_step"))


def format_of(problem: LinearProblem) -> GroupFormat:
    """The format of a problem's weight."""
    from etcuda.kernels.formats.int8 import Int8Format

    kind = Int4Format if problem.bits == 4 else Int8Format
    return kind(problem.group_size, problem.storage, problem.offset)


def make_activations(problem: LinearProblem) -> Tensor:
    """Random rows [m, k] on the GPU."""
    return torch.randn(problem.m, problem.k, dtype=torch.bfloat16, device="cuda")


def call_kernel(
    problem: LinearProblem, config: Config, x: Tensor, form: GroupFormat, stored: Stored, num_sms: int, pdl: int
) -> Tensor:
    """Runs a problem by a configuration, without a bias."""
    return run_config(problem.bits, form, x, stored, None, problem.activation_dtype, config, num_sms, pdl)


def expected(problem: LinearProblem, x: Tensor, form: GroupFormat, stored: Stored) -> Tensor:
    """The product with the dequantised weight and exact activations in fp32, some rows of the weight at a time."""
    pieces = []
    for start in range(0, stored[0].shape[0], 16384):
        parts = [None if part is None else part[start : start + 16384] for part in stored]
        pieces.append(x.float() @ form.dequantize(*parts).T)  # type: ignore[arg-type]
    return torch.cat(pieces, 1)


def check_config(job: Job) -> str | None:
    """Compiles a configuration and compares it with the reference on a small weight; the reason if it is no good."""
    _, problem, config = job
    torch.manual_seed(0)
    form, stored = make_weight(problem, _CHECK_ROWS)
    device = LocalDevice.current()
    x = make_activations(problem)
    try:
        got = call_kernel(problem, config, x, form, stored, device.num_sms, int(supports_pdl(device)))
        torch.cuda.synchronize()
    except Exception as error:  # a configuration that does not fit is an answer, not a failure
        return f"{type(error).__name__}: {str(error)[:120]}"
    wanted = expected(problem, x, form, stored)
    relative = float((got.float() - wanted).norm() / wanted.norm())
    return None if relative < _MOST_ERROR else f"relative error {relative:.2e}"


class Tuner:
    """Measures problems until the time is up.

    Args:
        device: the local GPU.
        jobs: processes that compile.
    """

    def __init__(self, device: LocalDevice, jobs: int) -> None:
        self.device = device
        self.jobs = jobs
        self.timer = Timer()
        self.rejected: dict[Job, str] = {}

    def candidates(self, kernel: KernelName, problem: LinearProblem) -> list[Config]:
        """Configurations to measure."""
        listed: list[Config] = []
        if kernel == "matvec":
            listed += matvec_candidates(problem, self.device)
        else:
            listed += matmul_candidates(problem, self.device)
        return [config for config in listed if compiled(kernel, problem, config) not in self.rejected]

    def compile(self, work: list[tuple[KernelName, LinearProblem]]) -> None:
        """Compiles what the problems need, in parallel; configurations that fail are left out from then on."""
        jobs = dict.fromkeys(compiled(k, p, c) for k, p in work for c in self.candidates(k, p))
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(self.jobs, mp_context=context) as pool:
            for job, reason in zip(jobs, pool.map(check_config, jobs, chunksize=2), strict=True):
                if reason is not None:
                    self.rejected[job] = reason
                    print(f"rejected {job[2]} at {job[1]}: {reason}", file=sys.stderr)
        print(f"compiled {len(jobs)} configurations, {len(self.rejected)} rejected so far", flush=True)

    def measure(self, kernel: KernelName, problem: LinearProblem) -> Entry | None:
        """Times every candidate, the best ones longer."""
        sets = max(2, min(_MOST_SETS, math.ceil(_COLD_BYTES / problem.weight_bytes)))
        weights = [make_weight(problem, problem.n) for _ in range(sets)]
        x = make_activations(problem)
        pdl = int(supports_pdl(self.device))

        def timed(config: Config, repetitions: int) -> float:
            def run(index: int) -> object:
                return call_kernel(problem, config, x, *weights[index % sets], self.device.num_sms, pdl)

            run(0)
            calls = max(sets, 2) if problem.m > 64 else max(sets, 12)
            return self.timer.graph_us(run, calls, repetitions).median_us

        measured = {config: timed(config, 3) for config in self.candidates(kernel, problem)}
        for config in sorted(measured, key=measured.__getitem__)[:4]:
            measured[config] = timed(config, 9)
        rows = sorted(measured.items(), key=lambda row: row[1])
        return Entry(kernel, problem, tuple(rows), pdl) if rows else None


def compiled(kernel: KernelName, problem: LinearProblem, config: Config) -> Job:
    """What tells one compiled kernel from another: the weight's rows and the number of programs do not."""
    same = dataclasses.replace(problem, n=_CHECK_ROWS)
    if isinstance(config, MatvecConfig):
        return kernel, same, dataclasses.replace(config, ctas_per_sm=min(config.ctas_per_sm, 1))
    # A number of rows that is a multiple of 16 compiles as every other does.
    m = 16 if problem.m % 16 == 0 else problem.m
    assert isinstance(config, MatmulConfig)
    return kernel, dataclasses.replace(same, m=m), dataclasses.replace(config, ctas_per_sm=min(config.ctas_per_sm, 1))


def environment(device: LocalDevice) -> dict[str, object]:
    """What the figures were measured on."""
    timing = "microseconds per call in a CUDA graph, weights not in the L2 cache, bf16 activations, median"
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


def save(path: pathlib.Path, table: Table) -> None:
    """Writes the table to a temporary name and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
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


def tune(arguments: argparse.Namespace, bits: int = 4) -> int:
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
    entries: dict[tuple[KernelName, LinearProblem], Entry] = {}
    others: tuple[Entry, ...] = ()
    if arguments.resume is not None:
        kept = from_json(arguments.resume.read_text(), str(arguments.resume)).entries
        entries = {(entry.kernel, entry.problem): entry for entry in kept if entry.pdl == int(supports_pdl(device))}
        others = tuple(entry for entry in kept if entry.pdl != int(supports_pdl(device)))
    tuner = Tuner(device, arguments.jobs)
    deadline = started + arguments.budget_s
    saved = time.monotonic()
    wanted = problems(bits)
    work = [each for each in wanted if each not in entries]
    if work and time.monotonic() < deadline:
        tuner.compile(work)
    for kernel, problem in itertools.takewhile(lambda _: time.monotonic() < deadline, work):
        entry = tuner.measure(kernel, problem)
        if entry is None:
            print(f"{kernel} {problem}: no configuration fits", file=sys.stderr)
            continue
        entries[kernel, problem] = entry
        shape = f"M {problem.m} {problem.n}x{problem.k}"
        print(f"{kernel} {shape}: {entry.us:.2f} us {dataclasses.astuple(entry.best)}", flush=True)
        if time.monotonic() - saved > _SAVE_EVERY_S:
            save(arguments.out, Table(device.arch, environment(device), (*entries.values(), *others)))
            saved = time.monotonic()
    save(arguments.out, Table(device.arch, environment(device), (*entries.values(), *others)))
    print(f"{len(entries)} of {len(wanted)} shapes in {arguments.out}, {time.monotonic() - started:.0f} s")
    return 0

"""Measures every candidate configuration on the local GPU and writes the table: ``etcuda tune rounding``."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import os
import pathlib
import sys
import time
from typing import Any

import torch
from torch import Tensor

from etcuda.errors import KernelArgumentError
from etcuda.kernels.activations import launch
from etcuda.kernels.activations.choose.configs import ActivationConfig, gate_candidates, norm_candidates
from etcuda.kernels.activations.choose.table import Entry, KernelName, Table, from_json, to_json
from etcuda.kernels.activations.problem import ActivationProblem
from etcuda.kernels.activations.reference import gate_quantize_reference, rms_norm_quantize_reference
from etcuda.kernels.common.device import LocalDevice, supports_pdl
from etcuda.kernels.common.timing import Timer
from etcuda.kernels.formats.base import BLOCK
from etcuda.kernels.linear.choose.tune import environment

_EPS = 1e-6
# Activations come from the kernel in front and are in the L2 cache, weights of norms are not: so many take turns.
_CALLS = 64
_MOST_ERROR = 1e-2
_TIMING = "microseconds per call in a CUDA graph, activations in the L2 cache, weights not, bf16, median"
# Hidden and intermediate sizes of language models, and rows of decoding, of few tokens together and of a prompt.
_HIDDEN = (1024, 2048, 3072, 4096, 5376, 8192)
_INTERMEDIATE = (3072, 8192, 11008, 14336, 21504)
_ROWS = (1, 4, 8, 64, 512)


def problems() -> list[tuple[KernelName, ActivationProblem]]:
    """What is measured, in order."""
    found: list[tuple[KernelName, ActivationProblem]] = []
    for m in _ROWS:
        found += [("quantize", ActivationProblem(m, k)) for k in sorted({*_HIDDEN, *_INTERMEDIATE})]
        found += [("norm", ActivationProblem(m, k, residual=some)) for k in _HIDDEN for some in (False, True)]
        found += [("gate", ActivationProblem(m, k)) for k in _INTERMEDIATE]
    return found


def candidates(kernel: KernelName, problem: ActivationProblem, device: LocalDevice) -> list[ActivationConfig]:
    """Configurations to measure."""
    if kernel == "norm":
        return norm_candidates(problem, device)
    if kernel == "gate":
        return gate_candidates(problem, device)
    # It chooses by itself.
    return [ActivationConfig(1, 1)]


def make_inputs(kernel: KernelName, problem: ActivationProblem) -> tuple[Tensor, Tensor]:
    """Activations, and weights [64, k], on the GPU."""
    width = 2 * problem.k if kernel == "gate" else problem.k
    x = torch.randn(problem.m, width, dtype=torch.bfloat16, device="cuda")
    return x, torch.randn(_CALLS, problem.k, dtype=torch.bfloat16, device="cuda")


def call_kernel(
    kernel: KernelName, problem: ActivationProblem, config: ActivationConfig, x: Tensor, weight: Tensor, pdl: int
) -> tuple[Tensor, ...]:
    """Runs a problem by a configuration; returns what is rounded, last q, scale and sum."""
    if kernel == "quantize":
        return launch.quantize(x, pdl)
    blocks, warps = dataclasses.astuple(config)
    if kernel == "gate":
        return launch.gate_quantize(x, None, "silu", False, blocks, warps, pdl)
    residual = x if problem.residual else None
    return launch.rms_norm_quantize(x, residual, weight, _EPS, 0.0, True, problem.residual, False, blocks, warps, pdl)


def check_config(
    kernel: KernelName, problem: ActivationProblem, config: ActivationConfig, x: Tensor, weight: Tensor, pdl: int
) -> str | None:
    """Runs a configuration and compares it with the reference; the reason if it is no good."""
    try:
        *_, q, scale, _ = call_kernel(kernel, problem, config, x, weight, pdl)
        torch.cuda.synchronize()
    except Exception as error:  # a configuration that does not fit is an answer, not a failure
        return f"{type(error).__name__}: {str(error)[:120]}"
    if kernel == "quantize":
        y = x
    elif kernel == "gate":
        y = gate_quantize_reference(x, None, "silu")[0]
    else:
        y = rms_norm_quantize_reference(x, x if problem.residual else None, weight, _EPS, 0.0, True)[1]
    got = q.float() * scale.repeat_interleave(BLOCK, dim=-1)
    relative = float((got - y.float()).norm() / y.float().norm())
    return None if relative < _MOST_ERROR else f"relative error {relative:.2e}"


def measure(kernel: KernelName, problem: ActivationProblem, device: LocalDevice, timer: Timer) -> Entry | None:
    """Times every candidate that is right."""
    x, weights = make_inputs(kernel, problem)
    pdl = int(supports_pdl(device))
    measured: dict[ActivationConfig, float] = {}
    for config in candidates(kernel, problem, device):
        reason = check_config(kernel, problem, config, x, weights[0], pdl)
        if reason is not None:
            print(f"rejected {config} of {kernel} at {problem}: {reason}", file=sys.stderr)
            continue

        def run(index: int, config: ActivationConfig = config) -> Any:
            return call_kernel(kernel, problem, config, x, weights[index % _CALLS], pdl)

        measured[config] = timer.graph_us(run, _CALLS, 9).median_us
    rows = sorted(measured.items(), key=lambda row: row[1])
    return Entry(kernel, problem, tuple(rows), pdl) if rows else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--arch", required=True, help="architecture of the local GPU, sm_90; the table is for it")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the table to write")
    parser.add_argument("--resume", type=pathlib.Path, help="a table whose entries are kept and not measured again")
    parser.add_argument("--budget-s", type=float, default=math.inf, help="seconds after which no shape is started")


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
    kept = () if arguments.resume is None else from_json(arguments.resume.read_text(), str(arguments.resume)).entries
    entries = {(entry.kernel, entry.problem): entry for entry in kept}
    timer = Timer()
    work = [each for each in problems() if each not in entries]
    in_time = itertools.takewhile(lambda _: time.monotonic() < started + arguments.budget_s, work)
    for kernel, problem in in_time:
        entry = measure(kernel, problem, device, timer)
        if entry is None:
            print(f"{kernel} {problem}: no configuration fits", file=sys.stderr)
            continue
        entries[kernel, problem] = entry
        print(f"{kernel} M {problem.m} K {problem.k}: {entry.us:.2f} us {dataclasses.astuple(entry.best)}", flush=True)
    save(arguments.out, Table(device.arch, environment(device) | {"timing": _TIMING}, tuple(entries.values())))
    print(f"{len(entries)} of {len(problems())} shapes in {arguments.out}, {time.monotonic() - started:.0f} s")
    return 0


def save(path: pathlib.Path, table: Table) -> None:
    """Writes the table to a temporary name and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(to_json(table))
    os.replace(partial, path)

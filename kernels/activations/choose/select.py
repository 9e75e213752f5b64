"""Which configuration a call gets, and what quantisation by a kernel of its own costs: from the measured table."""

from __future__ import annotations

import dataclasses
import math

from etcuda.kernels.activations.choose import table
from etcuda.kernels.activations.choose.configs import ActivationConfig, fitting, gate_candidates, norm_candidates
from etcuda.kernels.activations.choose.table import Entry, KernelName, Table
from etcuda.kernels.activations.problem import ActivationProblem
from etcuda.kernels.common.device import Device

# How far apart two shapes are: doublings of each quantity, weighted by how much they change the best configuration.
_LAUNCHES: tuple[KernelName, KernelName] = ("plain", "gate")
_WEIGHTS = {"m": 2.0, "k": 1.0, "itemsize": 1.0}


@dataclasses.dataclass(frozen=True)
class Choice:
    """A configuration, and where it comes from, in words."""

    config: ActivationConfig
    source: str


def choose_norm(problem: ActivationProblem, device: Device) -> Choice:
    """Of ``rms_norm_quantize``: the nearest measured one, its tile as large as the row."""
    found = _nearest("norm", problem, device)
    if found is None:
        return Choice(norm_candidates(problem, device)[0], _model(device))
    measured, entry = found
    return Choice(fitting(problem, entry.best.num_warps), _source(measured, entry))


def choose_gate(problem: ActivationProblem, device: Device) -> Choice:
    """Of ``gate_quantize``: the nearest measured one."""
    found = _nearest("gate", problem, device)
    if found is None:
        return Choice(gate_candidates(problem, device)[0], _model(device))
    measured, entry = found
    return Choice(entry.best, _source(measured, entry))


def quantize_us(problem: ActivationProblem, device: Device) -> float | None:
    """Microseconds that ``quantize_activation`` takes on the nearest measured shape; ``None`` if there is no table."""
    found = _nearest("quantize", problem, device)
    return None if found is None else found[1].us


def early_us(problem: ActivationProblem, device: Device) -> float:
    """Microseconds that a norm or a gate gains by being launched early; 0 where that was not measured."""
    plain, early = (_nearest(kernel, problem, device) for kernel in _LAUNCHES)
    return 0.0 if plain is None or early is None else max(plain[1].us - early[1].us, 0.0)


def _nearest(kernel: KernelName, problem: ActivationProblem, device: Device) -> tuple[Table, Entry] | None:
    measured = table.load(device.arch)
    entries = [] if measured is None else measured.of(kernel)
    if measured is None or not entries:
        return None
    return measured, min(entries, key=lambda entry: (_distance(entry.problem, problem), -entry.pdl))


def _distance(measured: ActivationProblem, asked: ActivationProblem) -> float:
    pairs = {name: (getattr(measured, name), getattr(asked, name)) for name in _WEIGHTS}
    apart = sum(_WEIGHTS[name] * abs(math.log2(max(a, 1) / max(b, 1))) for name, (a, b) in pairs.items())
    return apart + (measured.residual != asked.residual) / 4


def _source(measured: Table, entry: Entry) -> str:
    gpu = measured.environment.get("gpu", measured.arch)
    return f"measured on {gpu}, nearest shape M {entry.problem.m} K {entry.problem.k}"


def _model(device: Device) -> str:
    return f"the model, since there is no table for {device.arch}"

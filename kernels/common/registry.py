"""One record per kernel: what the partitioner, the passes, the tuner and the tests know of it.

The partitioner lets a model call the kernel's operator (``partitioner/rules/kernels.py``) and keeps whole what a pass
routes to it (``partitioner/kept_whole.py``). On the host a pass puts the reference in its place
(``passes/canonical/inline_kernels.py``). ``etcuda tune`` finds the families that it measures, and
``tests/kernels/common`` runs every record's samples.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from etcuda.kernels.common.tuning import Tuning


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a call must do at least: bytes moved to and from memory, and floating-point operations."""

    nbytes: int
    flops: int

    def floor_us(self, bytes_per_s: float, flops_per_s: float) -> float:
        """Microseconds that the slower of the two takes."""
        return 1e6 * max(self.nbytes / bytes_per_s, self.flops / flops_per_s)


def any_arch() -> None:
    """For kernels that are compiled for every architecture."""


@dataclasses.dataclass(frozen=True)
class KernelRecord:
    """A kernel and its operator.

    ``problem``, ``reference`` and ``arch`` take arguments of the operator, real or fake, by name: those that they have
    a parameter for.

    Attributes:
        op: the operator's qualified name, ``etcuda::attention_split``: the record's key.
        owner: the module that registers it.
        problem: makes the call in numbers; dynamic sizes are given as their hints.
        refuse: takes a problem; returns ``None`` if the kernel serves it, else why not, with the actual values.
        reference: plain PyTorch, fp32 inside; returns what the operator does.
        cost: takes a problem; what a call must do at least.
        samples: calls that the kernel serves, each the operator's arguments by name, on a device.
        unserved: a problem that it does not serve.
        arch: the only architecture that the call can be compiled for, or ``None``.
        on_host: whether a program for the host can call the operator: whether the reference compiles for it.
        kept_whole: operators that a pass routes to the kernel, and so must not be decomposed before.
        launched_early: whether the operator's last argument, ``pdl``, may be 1 wherever a model calls it: the kernel
            waits for all that it reads. A pass sets it for GPUs that can.
        tuning: the kernel's family as the tuner sees it, if it has configurations to choose from.
    """

    op: str
    owner: str
    problem: Callable[..., Any]
    refuse: Callable[[Any], str | None]
    reference: Callable[..., Any]
    cost: Callable[[Any], Cost]
    samples: Callable[[str], Sequence[Mapping[str, Any]]]
    unserved: Any
    arch: Callable[..., str | None] = any_arch
    on_host: bool = True
    kept_whole: tuple[torch._ops.OpOverload, ...] = ()
    launched_early: bool = False
    tuning: Tuning[Any, Any, Any] | None = None

    @property
    def overload(self) -> torch._ops.OpOverload:
        """The operator."""
        namespace, name = self.op.split("::")
        found: torch._ops.OpOverload = getattr(getattr(torch.ops, namespace), name).default
        return found

    def problem_of(self, arguments: Mapping[str, Any]) -> Any:
        """The call in numbers."""
        return _with_named(self.problem, arguments)

    def arch_of(self, arguments: Mapping[str, Any]) -> str | None:
        """The only architecture that the call can be compiled for, or ``None``."""
        found: str | None = _with_named(self.arch, arguments)
        return found

    def compute(self, arguments: Mapping[str, Any]) -> Any:
        """What the operator returns, by the reference."""
        return _with_named(self.reference, arguments)


def _with_named(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    names = inspect.signature(function).parameters
    return function(**{name: arguments[name] for name in names if name in arguments})


_RECORDS: dict[str, KernelRecord] = {}


def register(record: KernelRecord) -> KernelRecord:
    """Adds a kernel.

    Raises:
        ValueError: another one has the same name, or another family's tuning has the same name.
    """
    if record.op in _RECORDS:
        raise ValueError(
            f"kernel {record.op!r} is registered twice: expected one owner, got {_RECORDS[record.op].owner} and "
            f"{record.owner}. Rename or remove one of them."
        )
    for other in _RECORDS.values():
        if record.tuning is None or other.tuning is None or other.tuning is record.tuning:
            continue
        if other.tuning.family == record.tuning.family:
            raise ValueError(
                f"kernel {record.op!r}: expected a tuning of its own name, got {record.tuning.family!r} of "
                f"{record.owner}, which {other.owner} has. Rename one of them."
            )
    _RECORDS[record.op] = record
    return record


def find(op: str) -> KernelRecord:
    """The record of an operator.

    Raises:
        KeyError: there is none.
    """
    if op not in _RECORDS:
        known = ", ".join(sorted(_RECORDS)) or "none"
        raise KeyError(f"kernel {op!r} is not registered; expected one of: {known}. Import etcuda.kernels first.")
    return _RECORDS[op]


def records() -> Iterator[KernelRecord]:
    """Every record, by name."""
    return iter(_RECORDS[op] for op in sorted(_RECORDS))

"""One record per kernel: what the partitioner, the passes, the tests, the tuner and the benchmarks know of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etcuda.kernels.common.device import Device


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a call must do at least: bytes moved to and from memory, and floating-point operations."""

    nbytes: int
    flops: int

    def floor_us(self, bytes_per_s: float, flops_per_s: float) -> float:
        """Microseconds that the slower of the two takes."""
        return 1e6 * max(self.nbytes / bytes_per_s, self.flops / flops_per_s)


@dataclasses.dataclass(frozen=True)
class KernelRecord:
    """A kernel.

    Attributes:
        op: the operator's qualified name, ``etcuda::attention_split``: the record's key.
        owner: the module that registers it.
        refuse: takes a problem; returns ``None`` if the kernel serves it, else why not, with the actual values.
        reference: plain PyTorch, fp32 inside; takes the operator's arguments without the configuration.
        fake: shape and dtype of the result, from fake tensors; raises what the operator raises.
        implementations: by name (``"triton"``), what runs on the device.
        configurations: takes a problem and a device; the configurations worth measuring, the best guess first.
        cost: takes a problem; what a call must do at least.
    """

    op: str
    owner: str
    refuse: Callable[[Any], str | None]
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    implementations: Mapping[str, Callable[..., Any]]
    configurations: Callable[[Any, Device], Sequence[Any]]
    cost: Callable[[Any], Cost]


_RECORDS: dict[str, KernelRecord] = {}


def register(record: KernelRecord) -> KernelRecord:
    """Adds a kernel.

    Raises:
        ValueError: another one has the same name, or the record has no implementation.
    """
    if record.op in _RECORDS:
        raise ValueError(
            f"kernel {record.op!r} is registered twice: expected one owner, got {_RECORDS[record.op].owner} and "
            f"{record.owner}. Rename or remove one of them."
        )
    if not record.implementations:
        raise ValueError(
            f"kernel {record.op!r} of {record.owner}: expected at least one implementation, got none. "
            "Pass implementations={'triton': function}."
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

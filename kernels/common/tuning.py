"""What a kernel family brings to the tuner: its problems, candidates, inputs, call and expected result."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Generic

from torch import Tensor

from etcuda.kernels.common.device import Device
from etcuda.kernels.common.tables import Config, Kernel, Problem, TableFormat


@dataclasses.dataclass(frozen=True)
class Job(Generic[Kernel, Problem, Config]):
    """A configuration to compile and check, on a problem small enough for that. Equal jobs are one compiled kernel."""

    kernel: Kernel
    problem: Problem
    config: Config


class Tuning(abc.ABC, Generic[Kernel, Problem, Config]):
    """A kernel family as the tuner sees it.

    Instances hold no state beyond what makes them, and can be pickled: the processes that compile get a copy.

    Attributes:
        table_format: how the family's tables are written; its ``family`` is the name that ``etcuda tune`` takes.
        timing: how calls are timed, in words, for the record in the table.
        most_error: the greatest error of a result relative to the expected one, in the Euclidean norm.
    """

    table_format: TableFormat[Kernel, Problem, Config]
    timing: str
    most_error: float = 1e-2

    @property
    def family(self) -> str:
        """The family's name."""
        return self.table_format.family

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """Names of its kernels."""
        return tuple(self.table_format.configs)

    @abc.abstractmethod
    def problems(self) -> Sequence[Sequence[tuple[Kernel, Problem]]]:
        """What is measured, in groups that are compiled together, the most important first."""

    @abc.abstractmethod
    def candidates(self, kernel: Kernel, problem: Problem, device: Device) -> Sequence[Config]:
        """Configurations worth measuring, the best guess first."""

    def variants(self, problem: Problem, config: Config) -> Sequence[Config]:
        """Other configurations that need no other compilation than ``variant_jobs``; measured for the best ones."""
        return ()

    def variant_jobs(self, kernel: Kernel, problem: Problem, device: Device) -> Iterable[Job[Kernel, Problem, Config]]:
        """What the variants of a problem's configurations need compiled."""
        return ()

    def job(self, kernel: Kernel, problem: Problem, config: Config) -> Job[Kernel, Problem, Config]:
        """The compiled kernel that a configuration needs: what it does not depend on is replaced by a fixed value."""
        return Job(kernel, problem, config)

    @abc.abstractmethod
    def num_sets(self, problem: Problem) -> int:
        """Sets of inputs that take turns, so that none is found in the L2 cache."""

    @abc.abstractmethod
    def num_calls(self, problem: Problem, num_sets: int) -> int:
        """Calls in one CUDA graph."""

    @abc.abstractmethod
    def make_inputs(self, kernel: Kernel, problem: Problem, num_sets: int) -> Any:
        """Random inputs, as ``call`` and ``expected`` take them."""

    @abc.abstractmethod
    def call(self, kernel: Kernel, problem: Problem, config: Config, inputs: Any, index: int) -> Any:
        """Launches the kernel on one set of the inputs; returns what it computes."""

    def result(self, output: Any) -> Tensor:
        """What a call returned as one tensor, to compare with ``expected``."""
        made: Tensor = output
        return made

    @abc.abstractmethod
    def expected(self, kernel: Kernel, problem: Problem, inputs: Any) -> Tensor:
        """What the call on the first set of inputs should compute, by the reference."""

    @abc.abstractmethod
    def describe(self, problem: Problem) -> str:
        """The problem in words, for the log."""

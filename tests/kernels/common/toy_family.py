"""A kernel family on the CPU for the tests of the tuner: rows times a number, in chunks."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

from etcuda.kernels.common.device import Device
from etcuda.kernels.common.tables import TableFormat
from etcuda.kernels.common.tuning import Job, Tuning

Kernel = Literal["plain", "chunked"]


@dataclasses.dataclass(frozen=True)
class ToyProblem:
    rows: int
    factor: int


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    """Chunks of 3 compute something wrong, of 5 fail, and with ``lanes`` 2 every second chunk is left out."""

    chunk: int
    lanes: int = 1


class ToyTuning(Tuning[Kernel, ToyProblem, ToyConfig]):
    table_format = TableFormat(
        family="toy",
        configs={"plain": ToyConfig, "chunked": ToyConfig},
        problem=ToyProblem,
        shape=("rows", "factor"),
        pdl=True,
    )
    timing = "made up"

    def problems(self) -> list[list[tuple[Kernel, ToyProblem]]]:
        return [[("plain", ToyProblem(4, 2)), ("chunked", ToyProblem(4, 2))], [("chunked", ToyProblem(8, 3))]]

    def candidates(self, kernel: Kernel, problem: ToyProblem, device: Device) -> list[ToyConfig]:
        return [ToyConfig(1)] if kernel == "plain" else [ToyConfig(chunk) for chunk in (4, 3, 5, 2, 1)]

    def variants(self, problem: ToyProblem, config: ToyConfig) -> list[ToyConfig]:
        return [] if config.chunk == 1 else [dataclasses.replace(config, lanes=4)]

    def variant_jobs(self, kernel: Kernel, problem: ToyProblem, device: Device) -> list[Job[Any, Any, Any]]:
        return [self.job(kernel, problem, ToyConfig(2, 4))] if kernel == "chunked" else []

    def job(self, kernel: Kernel, problem: ToyProblem, config: ToyConfig) -> Job[Any, Any, Any]:
        return Job(kernel, dataclasses.replace(problem, rows=4), config)

    def num_sets(self, problem: ToyProblem) -> int:
        return 3

    def num_calls(self, problem: ToyProblem, num_sets: int) -> int:
        return 2 * num_sets

    def make_inputs(self, kernel: Kernel, problem: ToyProblem, num_sets: int) -> list[Tensor]:
        return [torch.ones(problem.rows, 2) * (index + 1) for index in range(num_sets)]

    def call(self, kernel: Kernel, problem: ToyProblem, config: ToyConfig, inputs: Any, index: int) -> Tensor:
        if config.chunk == 5:
            raise RuntimeError("out of resources: " + "shared memory " * 20)
        out: Tensor = inputs[index] * (problem.factor + (config.chunk == 3))
        return out

    def expected(self, kernel: Kernel, problem: ToyProblem, inputs: Any) -> Tensor:
        first: Tensor = inputs[0]
        return first.double() * problem.factor

    def describe(self, problem: ToyProblem) -> str:
        return f"rows {problem.rows} factor {problem.factor}"


TUNING = ToyTuning()

"""What a machine without the models needs to check a program: the calls and the outputs they should have."""

from __future__ import annotations

import dataclasses
import pathlib

import torch
from torch import Tensor

from examples.models import Call, find_case, relative_error, run_eager, run_fp32


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A session of one registry case.

    Attributes:
        name: the registry's key.
        calls: what to run, in order.
        eager: outputs of PyTorch in the case's dtype, on the CPU.
        fp32: outputs of the same weights computed in fp32.
    """

    name: str
    calls: list[Call]
    eager: list[Tensor]
    fp32: list[Tensor]

    def verdict(self, outputs: list[Tensor]) -> Verdict:
        """How far ``outputs`` are from what they should be."""
        return Verdict(
            error=relative_error(outputs, self.eager),
            error_fp32=relative_error(outputs, self.fp32),
            eager_error_fp32=relative_error(self.eager, self.fp32),
            tolerance=find_case(self.name).tolerance,
        )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Relative errors of one session.

    Attributes:
        error: against eager in the same dtype.
        error_fp32: against fp32.
        eager_error_fp32: of eager against fp32; 0 where the case is fp32.
        tolerance: the largest ``error`` the case may have.
    """

    error: float
    error_fp32: float
    eager_error_fp32: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Within tolerance of eager and, in low precision, no worse than 1.5 times eager's own error."""
        exact = self.eager_error_fp32 == 0
        return self.error < self.tolerance and (exact or self.error_fp32 <= 1.5 * self.eager_error_fp32)


def make_bundle(name: str) -> Bundle:
    """Runs the case in PyTorch."""
    case = find_case(name)
    calls = case.session(case.dtype)
    return Bundle(name, calls, run_eager(case.model(), calls), run_fp32(case))


def save_bundle(bundle: Bundle, path: pathlib.Path) -> None:
    """Writes a bundle; ``load_bundle`` reads it with any torch from 2.11 on."""
    calls = [(call.method, list(call.inputs)) for call in bundle.calls]
    torch.save({"name": bundle.name, "calls": calls, "eager": bundle.eager, "fp32": bundle.fp32}, path)


def load_bundle(path: pathlib.Path) -> Bundle:
    """Reads what ``save_bundle`` wrote."""
    data = torch.load(path, weights_only=True)
    calls = [Call(method, tuple(inputs)) for method, inputs in data["calls"]]
    return Bundle(data["name"], calls, data["eager"], data["fp32"])

"""The measured table of one architecture: ``kernels/tuned/activations/<arch>.json``, of ``etcuda tune rounding``."""

from __future__ import annotations

import functools
from typing import Literal

from etcuda.kernels.activations.choose.configs import RoundingConfig
from etcuda.kernels.activations.problem import RoundingProblem
from etcuda.kernels.common import tables

# "quantize" is etcuda::quantize_activation, which the others are compared with; it chooses its configuration itself.
KernelName = Literal["norm", "gate", "quantize"]
Entry = tables.Entry[KernelName, RoundingProblem, RoundingConfig]
Table = tables.Table[KernelName, RoundingProblem, RoundingConfig]
FOLDER = tables.FOLDER / "activations"
_FAMILY: tables.Family[KernelName, RoundingProblem, RoundingConfig] = tables.Family(
    tuner="`etcuda tune rounding`",
    configs={"norm": RoundingConfig, "gate": RoundingConfig, "quantize": RoundingConfig},
    problem=RoundingProblem,
    shape=("m", "k", "itemsize", "residual"),
    overlap=True,
)
to_json = _FAMILY.to_json
from_json = _FAMILY.from_json


@functools.cache
def load(arch: str) -> Table | None:
    """The table of an architecture, or ``None`` if it was never measured.

    Raises:
        KernelArgumentError: the file is not a table.
    """
    return _FAMILY.load(FOLDER / f"{arch}.json")

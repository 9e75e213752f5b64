"""The measured table of one architecture: ``kernels/tuned/activations/<arch>.json``, of ``etcuda tune rounding``."""

from __future__ import annotations

import functools
from typing import Literal

from etcuda.kernels.activations.choose.configs import ActivationConfig
from etcuda.kernels.activations.problem import ActivationProblem
from etcuda.kernels.common import tables

# "quantize" is etcuda::quantize_activation, which the others are compared with; it chooses its configuration itself.
KernelName = Literal["norm", "gate", "quantize"]
Entry = tables.Entry[KernelName, ActivationProblem, ActivationConfig]
Table = tables.Table[KernelName, ActivationProblem, ActivationConfig]
FOLDER = tables.FOLDER / "activations"
_FAMILY: tables.Family[KernelName, ActivationProblem, ActivationConfig] = tables.Family(
    tuner="`etcuda tune rounding`",
    configs={"norm": ActivationConfig, "gate": ActivationConfig, "quantize": ActivationConfig},
    problem=ActivationProblem,
    shape=("m", "k", "itemsize", "residual"),
    pdl=True,
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

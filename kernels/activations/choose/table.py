"""The measured tables, ``kernels/tuned/activations/ARCH.json``, which ``etcuda tune activations`` writes."""

from __future__ import annotations

import functools
from typing import Literal

from etcuda.kernels.activations.choose.configs import ActivationConfig
from etcuda.kernels.activations.problem import ActivationProblem
from etcuda.kernels.common import tables

# "quantize" is etcuda::quantize_activation, which the others are compared with; it chooses its configuration itself.
# "plain" is the gate launched when all in front has ended, as kernels are that Inductor generates.
KernelName = Literal["norm", "gate", "quantize", "plain"]
Entry = tables.Entry[KernelName, ActivationProblem, ActivationConfig]
Table = tables.Table[KernelName, ActivationProblem, ActivationConfig]
FORMAT: tables.TableFormat[KernelName, ActivationProblem, ActivationConfig] = tables.TableFormat(
    family="activations",
    configs=dict.fromkeys(("norm", "gate", "quantize", "plain"), ActivationConfig),
    problem=ActivationProblem,
    shape=("m", "k", "itemsize", "residual"),
    pdl=True,
)


@functools.cache
def load(arch: str) -> Table | None:
    """The table of an architecture, or ``None`` if it was never measured.

    Raises:
        KernelArgumentError: the file is not a table.
    """
    return FORMAT.load(arch)

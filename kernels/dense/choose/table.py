"""The measured table, ``kernels/tuned/dense/ARCH.json``, which ``etcuda tune dense`` writes."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

from etcuda.kernels.common import tables
from etcuda.kernels.dense.choose.configs import DenseConfig, LibraryConfig
from etcuda.kernels.dense.problem import DenseProblem

KernelName = Literal["matvec", "library"]
Config = DenseConfig | LibraryConfig
Entry = tables.Entry[KernelName, DenseProblem, Config]
Table = tables.Table[KernelName, DenseProblem, Config]

FORMAT: tables.TableFormat[KernelName, DenseProblem, Config] = tables.TableFormat(
    family="dense",
    configs={"matvec": DenseConfig, "library": LibraryConfig},
    problem=DenseProblem,
    shape=tuple(field.name for field in dataclasses.fields(DenseProblem)),
    pdl=True,
)


@functools.cache
def load(arch: str) -> Table | None:
    """The table of an architecture, or ``None`` if it was never measured.

    Raises:
        KernelArgumentError: the file is not a table.
    """
    return FORMAT.load(arch)

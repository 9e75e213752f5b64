"""The measured tables, ``kernels/tuned/FORMAT/ARCH.json``, which ``etcuda tune FORMAT`` writes: int4, int8."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

from etcuda.kernels.common import tables
from etcuda.kernels.linear.choose.configs import MatmulConfig, MatvecConfig
from etcuda.kernels.linear.problem import LinearProblem

KernelName = Literal["matvec", "matmul"]
Config = MatvecConfig | MatmulConfig
Entry = tables.Entry[KernelName, LinearProblem, Config]
Table = tables.Table[KernelName, LinearProblem, Config]
TableFormat = tables.TableFormat[KernelName, LinearProblem, Config]
FOLDER = tables.FOLDER


@functools.cache
def format_of(format_name: str) -> TableFormat:
    """How the tables of a weight format are written."""
    return tables.TableFormat(
        family=format_name,
        configs={"matvec": MatvecConfig, "matmul": MatmulConfig},
        problem=LinearProblem,
        shape=tuple(field.name for field in dataclasses.fields(LinearProblem)),
        pdl=True,
    )


@functools.cache
def load(format_name: str, arch: str) -> Table | None:
    """The table of a weight format on an architecture, or ``None`` if it was never measured.

    Raises:
        KernelArgumentError: the file is not a table.
    """
    return format_of(format_name).load(arch)

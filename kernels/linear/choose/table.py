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
def format_of(bits: int) -> TableFormat:
    """How the tables of weights of ``bits`` bits are written."""
    return tables.TableFormat(
        family=f"int{bits}",
        configs={"matvec": MatvecConfig, "matmul": MatmulConfig},
        problem=LinearProblem,
        shape=tuple(field.name for field in dataclasses.fields(LinearProblem)),
        pdl=True,
    )


# Tables of all formats are written alike.
to_json = format_of(4).to_json
from_json = format_of(4).from_json


@functools.cache
def load(bits: int, arch: str) -> Table | None:
    """The table of weights of ``bits`` bits on an architecture, or ``None`` if it was never measured.

    Raises:
        KernelArgumentError: the file is not a table.
    """
    return format_of(bits).load(arch)

"""The measured table of one architecture: ``kernels/tuned/<family>/<arch>.json``, written by ``etcuda tune``."""

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
FOLDER = tables.FOLDER
FAMILIES = {4: "int4", 8: "int8"}
_FAMILY: tables.Family[KernelName, LinearProblem, Config] = tables.Family(
    tuner="`etcuda tune int4` or `etcuda tune int8`",
    configs={"matvec": MatvecConfig, "matmul": MatmulConfig},
    problem=LinearProblem,
    shape=tuple(field.name for field in dataclasses.fields(LinearProblem)),
    pdl=True,
)
to_json = _FAMILY.to_json
from_json = _FAMILY.from_json


@functools.cache
def load(bits: int, arch: str) -> Table | None:
    """The table of weights of ``bits`` bits on an architecture, or ``None`` if it was never measured.

    Raises:
        KernelArgumentError: the file is not a table.
    """
    return _FAMILY.load(FOLDER / FAMILIES[bits] / f"{arch}.json")

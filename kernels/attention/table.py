"""The measured table of one architecture: ``kernels/tuned/attention/<arch>.json``, written by ``etcuda tune attention``."""

from __future__ import annotations

import functools
from typing import Literal

from etcuda.kernels.attention.configs import SplitConfig, TiledConfig
from etcuda.kernels.attention.problem import AttentionProblem
from etcuda.kernels.common import tables

KernelName = Literal["split", "tiled"]
Config = SplitConfig | TiledConfig
Entry = tables.Entry[KernelName, AttentionProblem, Config]
Table = tables.Table[KernelName, AttentionProblem, Config]
FOLDER = tables.FOLDER / "attention"
_FAMILY: tables.Family[KernelName, AttentionProblem, Config] = tables.Family(
    tuner="`etcuda tune attention`",
    configs={"split": SplitConfig, "tiled": TiledConfig},
    problem=AttentionProblem,
    shape=("batch", "num_heads", "num_kv_heads", "head_dim", "l_q", "l_kv", "causal", "window"),
    pdl=False,
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

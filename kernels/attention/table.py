"""The measured tables, ``kernels/tuned/attention/ARCH.json``, which ``etcuda tune attention`` writes."""

from __future__ import annotations

import functools
from typing import Literal

from etcuda.kernels.attention.configs import SplitConfig, TiledConfig
from etcuda.kernels.attention.hopper.decode import ClusterConfig
from etcuda.kernels.attention.problem import AttentionProblem
from etcuda.kernels.common import tables

KernelName = Literal["split", "tiled", "cluster"]
Config = SplitConfig | TiledConfig | ClusterConfig
Entry = tables.Entry[KernelName, AttentionProblem, Config]
Table = tables.Table[KernelName, AttentionProblem, Config]
FORMAT: tables.TableFormat[KernelName, AttentionProblem, Config] = tables.TableFormat(
    family="attention",
    configs={"split": SplitConfig, "tiled": TiledConfig, "cluster": ClusterConfig},
    problem=AttentionProblem,
    shape=("batch", "num_heads", "num_kv_heads", "head_dim", "l_q", "l_kv", "causal", "window"),
    pdl=False,
)


@functools.cache
def load(arch: str) -> Table | None:
    """The table of an architecture, or ``None`` if it was never measured.

    Raises:
        KernelArgumentError: the file is not a table.
    """
    return FORMAT.load(arch)

"""What the attention benchmark measures: registry data only, the most important first."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from etcuda.kernels.attention.problem import FULL, LOWER_RIGHT, UPPER_LEFT, AttentionProblem
from etcuda.kernels.attention.shapes import (
    D128,
    DECODE_LENGTHS,
    GEMMA,
    GEMMA_FULL,
    LLAMA,
    QWEN,
    WINDOW,
    Family,
)

Kind = Literal["decode", "filled", "draft", "prefill", "window"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One problem of one model family.

    Attributes:
        kind: the section of the page.
        family: whose heads.
        problem: the shapes.
        filled: keys that hold something, passed as a length on the device; 0 for all, without a length.
        peers: whether others are measured too.
    """

    kind: Kind
    family: str
    problem: AttentionProblem
    filled: int = 0
    peers: bool = True

    @property
    def name(self) -> str:
        """The row's name."""
        problem = self.problem
        heads = f"D{problem.head_dim} Hq{problem.num_heads} Hkv{problem.num_kv_heads}"
        rows = f" L_q {problem.l_q}" if self.kind in ("draft", "prefill", "window") else ""
        filled = f", {self.filled} filled" if self.filled else ""
        return f"{self.family} {heads} batch {problem.batch}{rows} L_kv {problem.l_kv}{filled}"


def _decode(families: tuple[Family, ...], batch: int, lengths: tuple[int, ...], peers: bool = True) -> list[Cell]:
    return [Cell("decode", f.name, f.problem(batch, 1, length), peers=peers) for f in families for length in lengths]


def _prefill(families: tuple[Family, ...], lengths: tuple[int, ...]) -> list[Cell]:
    return [Cell("prefill", f.name, f.problem(1, n, n, UPPER_LEFT)) for f in families for n in lengths]


def _cells() -> list[Cell]:
    cells = _decode((GEMMA, QWEN, D128), 1, DECODE_LENGTHS)
    cells += _prefill((D128, GEMMA), (2048, 4096, 8192, 16384))
    long = 16384
    cells += [Cell("window", f.name, f.problem(1, long, long, UPPER_LEFT, WINDOW)) for f in (GEMMA, D128)]
    cells += [Cell("window", f"{f.name} no window, not causal", f.problem(1, long, long, FULL)) for f in (GEMMA, D128)]
    cells += [
        Cell("filled", GEMMA.name, GEMMA.problem(1, 1, length), filled, peers=False)
        for length, filled in ((1024, 0), (1024, 1000), (131072, 1000))
    ]
    cells += _decode((GEMMA, D128), 8, (256, 1024, 4096, 16384, 65536))
    cells += [
        Cell("draft", f.name, f.problem(1, l_q, length, LOWER_RIGHT))
        for f in (GEMMA, LLAMA)
        for l_q in (4, 16)
        for length in (1024, 16384)
    ]
    cells += _decode((GEMMA_FULL, LLAMA), 1, DECODE_LENGTHS)
    cells += _prefill((LLAMA, GEMMA_FULL), (2048, 8192, 16384)) + _prefill((D128, GEMMA), (512, 1024))
    return cells + _decode((QWEN, GEMMA_FULL, LLAMA), 8, (1024, 16384, 65536))


CELLS = tuple(_cells())
# As PyTorch compiles it for every shape anew, flex attention is measured in a few cells only.
FLEX_LENGTHS = (2048, 16384)
FLEX_FAMILIES = (GEMMA.name, D128.name)

# Best of FlashInfer and llama.cpp (f16 cache) in microseconds on the same kind of GPU, an H200, recorded on
# 2026-11-21 with the same timing in a run of their own; by family, for DECODE_LENGTHS at batch 1; None: not measured.
RECORDED_US: dict[str, tuple[float | None, ...]] = {
    "gemma": (6.4, 7.9, 7.8, 11.8, 10.9, 16.7, 24.4, 40.8, 70.9, 131.3, 248.5, 484.0),
    "qwen": (6.6, 7.6, 7.1, 10.7, 8.2, 11.6, 12.7, 14.7, 18.3, 30.8, 46.9, 76.5),
    "d128": (4.2, 5.1, 4.7, 9.0, 6.7, 11.1, 14.7, 22.8, 38.9, 70.5, 130.7, 248.5),
}

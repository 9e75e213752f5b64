"""The shapes that are tuned and benchmarked, the most important first, so that a run that is cut short is of use."""

from __future__ import annotations

import dataclasses

from etcuda.kernels.attention.problem import LOWER_RIGHT, UPPER_LEFT, AttentionProblem


@dataclasses.dataclass(frozen=True)
class Family:
    """The heads of a model's attention layer."""

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def problem(self, batch: int, l_q: int, l_kv: int, causal: int = 0, window: int = 0) -> AttentionProblem:
        """A bf16 problem of the family."""
        heads = (self.num_heads, self.num_kv_heads, self.head_dim)
        return AttentionProblem(batch, *heads, l_q, l_kv, causal=causal, window=window)


GEMMA = Family("gemma", 32, 16, 256)
QWEN = Family("qwen", 16, 2, 256)
D128 = Family("d128", 32, 16, 128)
GEMMA_FULL = Family("gemma-full", 32, 4, 512)
LLAMA = Family("llama", 32, 8, 128)
FAMILIES = (GEMMA, QWEN, D128, GEMMA_FULL, LLAMA)

DECODE_LENGTHS = tuple(64 << step for step in range(12))
PREFILL_LENGTHS = (2048, 8192, 16384, 4096, 512, 1024)
DRAFT_LENGTHS = (1024, 16384, 256, 4096, 65536)
WINDOW = 1024
MOST_CLUSTER_KEYS = 8192


def decode(families: tuple[Family, ...], batch: int) -> list[tuple[Family, AttentionProblem]]:
    """One query row, every length."""
    return [(f, f.problem(batch, 1, length)) for f in families for length in DECODE_LENGTHS]


def prefill(families: tuple[Family, ...], window: int = 0) -> list[tuple[Family, AttentionProblem]]:
    """Causal, as many queries as keys."""
    return [
        (f, f.problem(1, length, length, UPPER_LEFT, window))
        for f in families
        for length in PREFILL_LENGTHS
        if length > window
    ]


def drafts(families: tuple[Family, ...], l_q: int) -> list[tuple[Family, AttentionProblem]]:
    """A few query rows at the end of a cache."""
    return [(f, f.problem(1, l_q, length, LOWER_RIGHT)) for f in families for length in DRAFT_LENGTHS]


def split_problems() -> list[tuple[Family, AttentionProblem]]:
    """What the split kernel is tuned for."""
    first, others = FAMILIES[:3], FAMILIES[3:]
    found = decode(first, 1) + decode(others, 1)
    found += drafts(FAMILIES, 4) + drafts(FAMILIES, 16)
    return found + decode(first, 8) + decode(others, 8)


def cluster_problems() -> list[tuple[Family, AttentionProblem]]:
    """What the kernel of clusters is tuned for: one row over as many keys as one cluster a KV head may be fast for."""
    return [pair for pair in decode(FAMILIES, 1) if pair[1].l_kv <= MOST_CLUSTER_KEYS]


def tiled_problems() -> list[tuple[Family, AttentionProblem]]:
    """What the tiled kernel is tuned for; the few-row ones show from where it beats the split kernel."""
    found = prefill((D128, GEMMA, LLAMA, GEMMA_FULL, QWEN))
    found += prefill((GEMMA, LLAMA, D128), WINDOW)
    for l_q in (16, 4):
        found += [pair for pair in drafts(FAMILIES, l_q) if pair[1].l_kv in (1024, 16384)]
    return found

"""Attention as one kernel of clusters, on a GPU that has them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from etcuda.kernels.attention.cluster_op import attention_cluster
from etcuda.kernels.attention.hopper.decode import HEAD_DIMS, ClusterConfig, fits
from etcuda.kernels.attention.op import attention_split
from etcuda.kernels.attention.problem import FULL, LOWER_RIGHT, POSITIONS, UPPER_LEFT
from etcuda.kernels.attention.reference import attention_reference
from tests.kernels.attention.attention_cases import DTYPES, TOLERANCE, Case, make, sinks_of

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)
# Heads of queries, of keys, and query rows.
ROWS = [(1, 1, 1), (4, 2, 1), (4, 1, 1), (8, 1, 1), (2, 2, 4), (4, 2, 2)]
KINDS: dict[str, dict[str, Any]] = {
    "all": {"causal": FULL},
    "lengths": {"kv_len": (300, 0), "causal": FULL, "softcap": 3.0},
    "lower right": {"causal": LOWER_RIGHT, "window": 77, "sinks": True},
    "upper left": {"causal": UPPER_LEFT},
    "positions": {"causal": POSITIONS, "start": (290, 12)},
    "ring": {"causal": POSITIONS, "start": (4100, 5), "window": 200, "ring": True, "sinks": True},
}


def case_of(kind: str, rows: tuple[int, int, int], head_dim: int, dtype: torch.dtype, l_kv: int) -> Case:
    given = dict(KINDS[kind])
    start = given.pop("start", None)
    heads, kv_heads, l_q = rows
    if start is not None:
        given["positions"] = tuple(tuple(range(first, first + l_q)) for first in start)
    return Case(2, heads, kv_heads, l_q, l_kv, head_dim, dtype, **given)


def run(case: Case, config: ClusterConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel computes, and the reference in double precision."""
    (q, k, v), _, kv_len, positions = make(case)
    sinks, scale = sinks_of(case), case.head_dim**-0.5
    expected = attention_reference(
        q.double(), k.double(), v.double(), None, kv_len, positions, scale, case.causal, case.window, case.softcap,
        None if sinks is None else sinks.double(), case.ring,
    )  # fmt: skip
    given = (q, k, v, None, kv_len, positions, scale, case.causal, case.window, case.softcap, *config.to_args())
    first = attention_cluster(*given, sinks=sinks, ring=case.ring)
    assert torch.equal(first, attention_cluster(*given, sinks=sinks, ring=case.ring)), "the same bits each time"
    return first, expected


CONFIGS = [ClusterConfig(*each, pdl) for each in ((8, 256, 2), (4, 512, 2), (2, 128, 2), (1, 256, 1)) for pdl in (0, 1)]


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_call(kind: str, head_dim: int) -> None:
    # Each is compiled for itself: rows, dtypes and configurations take turns.
    index = [*KINDS].index(kind) + HEAD_DIMS.index(head_dim)
    rows, dtype = ROWS[index % len(ROWS)], DTYPES[index % 2]
    turns = itertools.islice(itertools.cycle(CONFIGS), index, index + len(CONFIGS))
    config = next(each for each in turns if fits(each, head_dim, rows[2] * rows[0] // rows[1]))
    case = case_of(kind, rows, head_dim, dtype, 301)
    got, expected = run(case, config)
    assert not got.isnan().any()
    assert not got[expected.abs().amax(-1) == 0].any(), "rows that see no key are zero"
    assert float((got.double() - expected).norm() / expected.norm()) < TOLERANCE[dtype], (case, config)


def test_it_is_as_close_to_the_reference_as_two_kernels_and_a_graph_follows_positions() -> None:
    torch.manual_seed(0)
    q = torch.randn(1, 32, 1, 128, device="cuda", dtype=torch.bfloat16)
    k, v = torch.randn(2, 1, 8, 4160, 128, device="cuda", dtype=torch.bfloat16).unbind(0)
    position = torch.tensor([511], device="cuda")
    given = (q, k, v, None, None, position, 128**-0.5, POSITIONS, 0, 0.0)

    def one() -> torch.Tensor:
        return attention_cluster(*given, 8, 256, 4, 1)

    def two() -> torch.Tensor:
        return attention_split(*given, 16, 64, 4, 3, 16, 16, 16, 1)

    def error(got: torch.Tensor) -> float:
        exact = attention_reference(q.double(), k.double(), v.double(), positions=position, causal=POSITIONS)
        return float((got.double() - exact).norm() / exact.norm())

    assert error(one()) <= 1.1 * error(two())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = one()
    for at in (0, 1, 63, 1000, 4159):
        position.fill_(at)
        graph.replay()
        torch.cuda.synchronize()
        assert error(got) < TOLERANCE[torch.bfloat16], at

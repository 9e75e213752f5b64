"""Attention as one kernel of clusters, without a GPU: what it refuses, how it compiles, and when it is chosen."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from etcuda.errors import KernelArgumentError
from etcuda.kernels.attention import table
from etcuda.kernels.attention.cluster_op import attention_cluster, refuse_cluster
from etcuda.kernels.attention.configs import SplitConfig, cluster_candidates
from etcuda.kernels.attention.hopper.decode import ClusterConfig, fits, leaves_room
from etcuda.kernels.attention.problem import POSITIONS, AttentionProblem
from etcuda.kernels.attention.reference import attention_reference
from etcuda.kernels.attention.select import choose
from etcuda.kernels.attention.table import Entry, Table
from etcuda.kernels.common.device import LocalDevice

H200 = LocalDevice("sm_90", 132, 227 << 10, 50 << 20)
CONFIG = ClusterConfig(8, 256, 4, 1)
PROBLEM = AttentionProblem(1, 8, 2, 64, 1, 512)


def arguments(**changes: Any) -> dict[str, Any]:
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, length, 64, generator=random).half() for heads, length in ((8, 1), (2, 9), (2, 9)))
    given = {
        "q": q, "k": k, "v": v, "mask": None, "kv_len": None, "positions": torch.tensor([5]), "scale": 0.125,
        "causal": POSITIONS, "window": 0, "softcap": 0.0,
    }  # fmt: skip
    return given | vars(CONFIG) | changes


def test_on_a_cpu_it_is_the_reference() -> None:
    given = arguments()
    q, k, v, positions = (given[name] for name in ("q", "k", "v", "positions"))
    assert torch.equal(attention_cluster(**given), attention_reference(q, k, v, positions=positions, causal=POSITIONS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": torch.ones(1, 9, dtype=torch.bool)}, "expected a call that the kernel serves, got there is a mask"),
        ({"q": torch.zeros(1, 6, 1, 64).half()}, "a KV head has 1, 2, 4 or 8 rows, got 3"),
        (dict.fromkeys("kv", torch.zeros(1, 2, 9, 80).half()[..., :64]),
         "keys and values are not contiguous"),
        (dict.fromkeys("kv", torch.zeros(1, 2, 9, 72).half()) | {"q": torch.zeros(1, 8, 1, 72).half()},
         r"head_dim is one of \(16, 32, 64, 128, 256, 512\), got 72"),
        ({"sinks": torch.zeros(8, dtype=torch.float64)}, "sinks are bfloat16, float16 or float32, got torch.float64"),
        ({"cluster": 3}, "cluster: expected 1, 2, 4 or 8 CTAs, got 3"),
        ({"threads": 96}, "threads: expected 128, 256 or 512, got 96"),
        ({"unroll": 3}, "unroll: expected 1, 2, 4 or 8 keys, got 3"),
        ({"threads": 512, "unroll": 8},
         "a configuration that fits a multiprocessor, got 512 threads of 8 keys with 4 rows of 64"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)  # fmt: skip
def test_what_it_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(KernelArgumentError, match=message):
        attention_cluster(**arguments(**changes))


def test_candidates_fit() -> None:
    for head_dim, rows in ((64, 1), (128, 4), (128, 8), (256, 2), (256, 8), (512, 8)):
        problem = AttentionProblem(1, rows, 1, head_dim, 1, 512)
        found = cluster_candidates(problem, H200)
        assert found
        assert all(fits(config, head_dim, rows) and config.pdl for config in found)
    assert not cluster_candidates(AttentionProblem(1, 3, 1, 64, 1, 512), H200)


@pytest.mark.parametrize(("us", "kernel"), [(4.0, "cluster"), (7.9, "cluster"), (8.1, "split")])
def test_the_table_says_which_of_the_two_is_taken(us: float, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    split = SplitConfig(16, 64, 4, 3, 4, 4, 64, 1)
    entries = (Entry("split", PROBLEM, ((split, 5.0),)), Entry("cluster", PROBLEM, ((CONFIG, us),)))
    monkeypatch.setattr(table, "load", lambda arch: Table("sm_90", {"num_sms": 132}, entries))
    assert choose(PROBLEM, H200, one_kernel=True).kernel == kernel
    assert choose(PROBLEM, H200).kernel == "split", "unless the kernel serves the tensors"
    other = dataclasses.replace(PROBLEM, num_heads=6)
    assert choose(other, H200, one_kernel=True).kernel == "split"


def test_of_a_cache_half_of_the_places_are_typical(monkeypatch: pytest.MonkeyPatch) -> None:
    split = SplitConfig(16, 64, 4, 3, 4, 4, 64, 1)
    entries = []
    for l_kv, us in ((1024, 4.0), (2048, 9.5)):
        problem = dataclasses.replace(PROBLEM, l_kv=l_kv)
        entries += [Entry("split", problem, ((split, 5.0),)), Entry("cluster", problem, ((CONFIG, us),))]
    monkeypatch.setattr(table, "load", lambda arch: Table("sm_90", {"num_sms": 132}, tuple(entries)))
    for causal, kernel in ((POSITIONS, "cluster"), (0, "split")):
        asked = dataclasses.replace(PROBLEM, l_kv=2048, causal=causal)
        assert choose(asked, H200, one_kernel=True).kernel == kernel


def test_a_configuration_that_fills_a_multiprocessor_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = dataclasses.replace(PROBLEM, head_dim=128)
    large, small = ClusterConfig(8, 512, 4, 1), ClusterConfig(8, 256, 4, 1)
    assert [leaves_room(config, 128, 4) for config in (large, small)] == [False, True]
    split = SplitConfig(16, 64, 4, 3, 4, 4, 64, 1)
    entries = (Entry("split", problem, ((split, 5.0),)), Entry("cluster", problem, ((large, 3.0), (small, 3.5))))
    monkeypatch.setattr(table, "load", lambda arch: Table("sm_90", {"num_sms": 132}, entries))
    assert choose(problem, H200, one_kernel=True).config == small


def test_dynamic_sizes_are_refused_in_words() -> None:
    q, k = torch.zeros(1, 8, 1, 64), torch.zeros(1, 2, 9, 64)
    assert refuse_cluster(q, k, k, None, None) is None
    assert refuse_cluster(q, k.transpose(2, 3).contiguous().transpose(2, 3), k, None, None) is not None

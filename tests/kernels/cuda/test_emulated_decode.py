"""Attention as one kernel of clusters, emulated on the CPU: against the reference."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from etcuda.kernels.attention.hopper.decode import ClusterConfig, fits, native_decode
from etcuda.kernels.attention.problem import FULL, LOWER_RIGHT, POSITIONS, UPPER_LEFT
from etcuda.kernels.attention.reference import attention_reference
from tests.kernels.attention.attention_cases import TOLERANCE, Case, make, sinks_of
from tests.kernels.cuda.test_emulated import emulate, program

CASES = {
    "decode": (
        Case(l_q=1, l_kv=100, kv_heads=2, heads=8, head_dim=128, causal=POSITIONS, positions=((77,),)), 8, 128, 4),
    "lengths and a soft cap": (
        Case(l_q=1, l_kv=41, batch=3, kv_heads=1, heads=2, head_dim=32, kv_len=(41, 0, 17), softcap=2.0), 2, 128, 2),
    "a ring with sinks": (
        Case(l_q=2, l_kv=33, batch=2, kv_heads=1, heads=2, head_dim=64, causal=POSITIONS, ring=True, window=20,
             positions=((5, 6), (4100, 4101)), sinks=True), 4, 128, 1),
    "a window of drafts": (
        Case(l_q=2, l_kv=150, kv_heads=1, heads=4, head_dim=16, causal=LOWER_RIGHT, window=90,
             dtype=torch.bfloat16), 4, 256, 1),
    "several steps of wide heads": (
        Case(l_q=1, l_kv=50, kv_heads=1, heads=1, head_dim=512, causal=FULL, dtype=torch.bfloat16), 1, 128, 4),
    "upper left": (Case(l_q=4, l_kv=9, kv_heads=1, heads=2, head_dim=64, causal=UPPER_LEFT, sinks=True), 8, 128, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_kernel_of_clusters(name: str) -> None:
    case, cluster, threads, unroll = CASES[name]
    config = ClusterConfig(cluster, threads, unroll, 0)
    group = case.heads // case.kv_heads
    assert fits(config, case.head_dim, group * case.l_q)
    (q, k, v), _, kv_len, positions = (each for each in make(dataclasses.replace(case)))
    q, k, v = (each.cpu() for each in (q, k, v))
    sinks = sinks_of(case)
    scale = case.head_dim**-0.5
    made = native_decode(
        config, dtype=str(case.dtype).removeprefix("torch."), length_bytes=0 if kv_len is None else 4,
        position_bytes=0 if positions is None else 8,
        position_stride=case.l_q if positions is not None and len(positions) > 1 else 0,
        sinks_dtype="" if sinks is None else str(case.dtype).removeprefix("torch."), kv_heads=case.kv_heads,
        group=group, l_q=case.l_q, head_dim=case.head_dim, causal=case.causal, window=case.window, ring=case.ring,
        scale=scale * 1.4426950408889634, softcap=case.softcap,
    )  # fmt: skip
    expected = attention_reference(
        q.double(), k.double(), v.double(), None, kv_len, positions, scale, case.causal, case.window, case.softcap,
        None if sinks is None else sinks.double(), case.ring,
    )  # fmt: skip
    out = torch.full((case.batch, case.l_q, case.heads, case.head_dim), float("nan"), dtype=case.dtype)
    absent = torch.zeros(1)
    memory = [q, k, v, *(absent if each is None else each.cpu() for each in (kv_len, positions, sinks)), out]
    emulate(program("decode", made), [case.kv_heads, case.batch, case.l_kv, 3], memory, 1)
    got = out.transpose(1, 2)
    assert not got.isnan().any()
    masked = expected.abs().amax(-1) == 0
    assert not got[masked].any(), "rows that see no key are zero"
    assert float((got.double() - expected).norm() / expected.norm()) < TOLERANCE[case.dtype]

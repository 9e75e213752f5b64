"""Each call of an operator that can stay whole is decided alone; a refused one is decomposed with its reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.export import Dim

from etcuda import partition_report
from etcuda.options import BackendConfig, CompileOptions
from etcuda.partitioner.kept_whole import decide, decompose_refused, kept_operators
from etcuda.target import TARGETS
from tests.partitioner.programs import export
from tests.passes.attention.attention_routing import SDPA, calls, routed, run

aten = torch.ops.aten
ATTENTION = {"attention_kernels": True}
CONFIG = BackendConfig(TARGETS["sm_90"], CompileOptions(attention_kernels=True))
Q, K = (torch.randn(1, 4, length, 16, generator=torch.Generator().manual_seed(length)).bfloat16() for length in (5, 40))

pytestmark = pytest.mark.usefixtures("no_table")


@pytest.fixture
def no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    from etcuda.kernels.attention import table

    monkeypatch.setattr(table, "load", lambda arch: None)


def one_of_two(q: Any, k: Any) -> Any:
    """The second has three dimensions, which the rule refuses."""
    return SDPA(q, k, k) + SDPA(q[0], k[0], k[0])


def test_a_refused_call_is_decomposed_alone() -> None:
    program = export(one_of_two, Q, K)
    before = [node.name for node in program.graph.nodes]
    lowered = routed(program)
    assert len(calls(lowered)) == 1
    torch.testing.assert_close(run(lowered, Q, K), one_of_two(Q, K), atol=2e-2, rtol=2e-2)
    assert [node.name for node in program.graph.nodes] == before


def test_several_methods_and_lengths() -> None:
    length = Dim("length", min=2, max=100)
    program = export(one_of_two, Q, K, dynamic=({2: length}, None))
    lowered = routed(program)
    assert len(calls(lowered)) == 2  # one for few rows, one for many
    for rows in (2, 5, 60):
        q = torch.randn(1, 4, rows, 16).bfloat16()
        torch.testing.assert_close(run(lowered, q, K), one_of_two(q, K), atol=2e-2, rtol=2e-2)


def test_a_refused_call_that_is_the_output() -> None:
    def model(q: Any, k: Any) -> Any:
        first = SDPA(q, k, k)
        return SDPA(first[0], k[0], k[0])

    program = decompose_refused(export(model, Q, K), CONFIG)
    assert list(decide(program, CONFIG).values()) == [None]
    torch.testing.assert_close(program.module()(Q, K), model(Q, K), atol=2e-2, rtol=2e-2)
    lowered = routed(export(model, Q, K))
    torch.testing.assert_close(run(lowered, Q, K), model(Q, K), atol=2e-2, rtol=2e-2)


def test_in_a_branch() -> None:
    def model(q: Any, k: Any) -> Any:
        return torch.cond(q.sum() > 0, lambda q, k: one_of_two(q, k), lambda q, k: q + 1, (q, k))

    lowered = routed(export(model, Q, K))
    assert len(calls(lowered)) == 1
    for sign in (1, -1):
        torch.testing.assert_close(run(lowered, Q.abs() * sign, K), model(Q.abs() * sign, K), atol=2e-2, rtol=2e-2)


def test_other_operators() -> None:
    def model(x: Any, n: Any) -> Any:
        return torch.baddbmm(x, x, x).sum() + torch.baddbmm(n, n, n, beta=2).sum()

    inputs = (torch.randn(2, 3, 3), torch.ones(2, 3, 3, dtype=torch.int64))
    config = BackendConfig("host")
    program = export(model, *inputs)
    assert kept_operators(program, config) == []
    after = decompose_refused(program, config)
    assert kept_operators(after, config) == [aten.baddbmm.default]
    targets = [node.target for node in after.graph.nodes]
    assert targets.count(aten.baddbmm.default) == 1
    assert aten.bmm.default in targets
    torch.testing.assert_close(after.module()(*inputs), model(*inputs))


@pytest.mark.parametrize("function", [lambda q, k: SDPA(q, k, k), lambda q, k: SDPA(q[0], k[0], k[0]), lambda q, k: q])
def test_where_all_calls_agree_nothing_is_done(function: Any) -> None:
    program = export(function, Q, K)
    assert decompose_refused(program, CONFIG) is program


@pytest.mark.parametrize(("target", "option"), [("sm_90", False), ("host", True)])
def test_where_attention_has_no_kernels_it_is_no_candidate(target: str, option: bool) -> None:
    program = export(one_of_two, Q, K)
    assert partition_report(program, target, {"attention_kernels": option}).decomposed == ()


def test_the_report_names_what_is_decomposed_and_why() -> None:
    program = export(one_of_two, Q, K)
    report = partition_report(program, "sm_90", ATTENTION)
    assert report.refusals == ()
    (refused,) = report.decomposed
    assert refused.node == "scaled_dot_product_attention_1"
    assert refused.op == "aten.scaled_dot_product_attention.default"
    assert refused.reason == "attention takes tensors of 4 dimensions, got (3, 3, 3)"
    assert refused.values == {"ranks": (3, 3, 3)}
    assert "decomposed: attention takes tensors of 4 dimensions, got (3, 3, 3)" in str(report)

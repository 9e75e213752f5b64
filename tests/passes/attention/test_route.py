"""Attention is routed by shapes and dtypes, and the routed program computes the same."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch.export import Dim

from etcuda.errors import PassError
from etcuda.kernels.attention.problem import UPPER_LEFT
from etcuda.kernels.attention.split import MAX_QUERY
from etcuda.options import BackendConfig
from etcuda.passes.attention import simplify
from etcuda.passes.recognize.mask import PositionMask
from tests.partitioner.programs import export
from tests.passes.attention.attention_routing import (
    BF16,
    CHECKED,
    DYNAMIC,
    H200,
    SDPA,
    SPLIT,
    TILED,
    attend,
    calls,
    only_call,
    routed,
    run,
    self_attention,
    tensors,
)

pytestmark = pytest.mark.usefixtures("no_table")


def test_heads_that_were_repeated() -> None:
    def function(q: Any, k: Any, v: Any) -> Any:
        k, v = (x[:, :, None].expand(-1, -1, 2, -1, -1).reshape(1, 4, -1, 16) for x in (k, v))
        return SDPA(q, k, v)

    inputs = tensors()
    program = routed(export(function, *inputs))
    keys: Any = only_call(program).args[1]
    assert keys.meta["val"].shape == (1, 2, 40, 16)
    torch.testing.assert_close(run(program, *inputs), function(*inputs), atol=2e-2, rtol=2e-2)


def test_heads_that_were_repeated_in_another_order() -> None:
    def function(q: Any, k: Any, v: Any) -> Any:
        k, v = (x[:, None].expand(-1, 2, -1, -1, -1).reshape(1, 4, -1, 16) for x in (k, v))
        return SDPA(q, k, v)

    inputs = tensors()
    program = routed(export(function, *inputs))
    keys: Any = only_call(program).args[1]
    assert keys.meta["val"].shape == (1, 4, 40, 16)
    torch.testing.assert_close(run(program, *inputs), function(*inputs), atol=2e-2, rtol=2e-2)


def test_a_dynamic_number_of_rows_is_decided_on_the_host() -> None:
    program = routed(export(self_attention, *tensors(24, 24), dynamic=DYNAMIC))
    conds = [node for node in program.graph.nodes if node.target is torch.ops.higher_order.cond]
    assert len(conds) == 1
    predicate: Any = conds[0].args[0]
    assert isinstance(predicate.meta["val"], torch.SymBool)
    assert predicate.args[1] == MAX_QUERY
    assert [node.target for node in calls(program)] == [SPLIT, TILED]
    for length in (2, 16, 17, 60):
        inputs = tensors(length, length)
        torch.testing.assert_close(run(program, *inputs), self_attention(*inputs), atol=4e-2, rtol=2e-2)


def test_a_number_of_rows_that_one_kernel_serves() -> None:
    few = Dim("few", min=2, max=MAX_QUERY)
    program = routed(export(self_attention, *tensors(9, 9), dynamic=({2: few}, {2: few}, {2: few})))
    assert only_call(program).target is SPLIT
    many = Dim("many", min=MAX_QUERY + 1, max=99)
    program = routed(export(self_attention, *tensors(20, 20), dynamic=({2: many}, {2: many}, {2: many})))
    assert only_call(program).target is TILED


@pytest.mark.parametrize("config", [CHECKED, BackendConfig("host")])
def test_what_no_kernel_serves_becomes_its_formula(config: BackendConfig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "etcuda")
    dtype = BF16 if config.is_host else torch.float32
    inputs = tensors(24, 24, dtype=dtype)
    program = routed(export(self_attention, *inputs, dynamic=DYNAMIC), config)
    assert calls(program) == []
    assert config.is_host == ("the kernels take bfloat16 and float16, got float32" not in caplog.text)
    tolerance = 4e-2 if config.is_host else 1e-5
    for length in (2, 24, 60):
        inputs = tensors(length, length, dtype=dtype)
        expected = self_attention(*inputs)
        torch.testing.assert_close(run(program, *inputs), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scale": -0.5}, r"scale is positive and finite, got -0\.5"),
        ({"v": torch.randn(1, 2, 40, 8).to(BF16)}, "values are as wide as keys, got 8 and 16"),
        ({"q": torch.randn(1, 4, 5, 520).to(BF16), "k": torch.randn(1, 2, 40, 520).to(BF16)}, "values are as wide"),
    ],
)
def test_reasons(change: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "etcuda")
    q, k, v = tensors()
    inputs = (change.get("q", q), change.get("k", k), change.get("v", v))
    keywords = {"scale": change["scale"]} if "scale" in change else {}
    program = routed(export(lambda q, k, v: attend(q, k, v, **keywords), *inputs))
    assert calls(program) == []
    assert "is computed by its formula" in caplog.text
    assert re.search(reason, caplog.text)
    torch.testing.assert_close(run(program, *inputs), attend(*inputs, **keywords), atol=2e-2, rtol=2e-2)


def test_the_debug_option_finds_a_wrong_rewrite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simplify, "recognize_mask", lambda mask, q, k: PositionMask(UPPER_LEFT, window=2))
    program = export(self_attention, *tensors(24, 24))
    with pytest.raises(
        PassError, match=r"check_attention: expected the rewritten call to be equal, got a relative err"
    ):
        routed(program)
    assert len(calls(routed(program, BackendConfig(H200)))) == 1


def test_attention_in_a_branch() -> None:
    def function(q: Any, k: Any, v: Any) -> Any:
        return torch.cond(q.sum() > 0, lambda q, k, v: SDPA(q, k, v), lambda q, k, v: q + 1, (q, k, v))

    q, k, v = (torch.randn(1, 2, 40, 16).to(BF16) for _ in range(3))
    program = routed(export(function, q, k, v))
    assert only_call(program).target is TILED
    for sign in (1, -1):
        inputs = (q.abs() * sign, k, v)
        torch.testing.assert_close(run(program, *inputs), function(*inputs), atol=2e-2, rtol=2e-2)

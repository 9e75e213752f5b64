"""The tuner of rounding and the choice from its table, with a clock and kernels that are made up."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch

from etcuda.cli import main
from etcuda.errors import KernelArgumentError
from etcuda.kernels.activations.choose import table, tune
from etcuda.kernels.activations.choose.configs import ActivationConfig, norm_candidates
from etcuda.kernels.activations.choose.select import choose_gate, choose_norm, quantize_us
from etcuda.kernels.activations.problem import ActivationProblem
from etcuda.kernels.activations.reference import gate_quantize_reference, rms_norm_quantize_reference
from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.common.timing import Times

DEVICE = LocalDevice("sm_90", 132, 227 << 10)


class FakeTimer:
    """Four warps are best, and time goes with K."""

    last: Any = None

    def graph_us(self, call: Any, calls: int, repetitions: int, hot: bool = False) -> Times:
        assert (calls, repetitions) == (64, 9)
        call(63)
        kernel, problem, config = FakeTimer.last
        time = 1 + abs(config.num_warps - 4) + problem.k / 1e4 + (kernel == "norm")
        return Times(time, time, 0.0)


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def call_kernel(kernel: str, problem: ActivationProblem, config: Any, *_rest: Any) -> None:
        FakeTimer.last = kernel, problem, config

    def check(kernel: str, problem: ActivationProblem, config: ActivationConfig, *_rest: Any) -> str | None:
        return "too large" if config.num_warps == 16 else None

    monkeypatch.setattr(LocalDevice, "current", lambda: DEVICE)
    monkeypatch.setattr(tune, "call_kernel", call_kernel)
    monkeypatch.setattr(tune, "check_config", check)
    monkeypatch.setattr(tune, "Timer", FakeTimer)
    monkeypatch.setattr(tune, "make_inputs", lambda kernel, problem: (None, [None] * 64))
    monkeypatch.setattr(tune, "environment", lambda device: {"gpu": "made up", "num_sms": 132})


@pytest.mark.usefixtures("fake_gpu")
def test_a_whole_run_and_a_resumed_one(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "sm_90.json"
    arguments = ["tune", "rounding", "--arch", "sm_90", "--out", str(out)]
    assert main([*arguments, "--budget-s", "0"]) == 0
    assert not table.from_json(out.read_text(), "out").entries
    assert main(arguments) == 0
    first = table.from_json(out.read_text(), "out")
    assert [(entry.kernel, entry.problem) for entry in first.entries] == tune.problems()
    assert main([*arguments, "--resume", str(out)]) == 0
    again = table.from_json(out.read_text(), "out")
    assert again == first
    assert table.from_json(table.to_json(again), "again") == again
    assert f"{len(first.entries)} of {len(tune.problems())} shapes" in capsys.readouterr().out
    assert list(out.parent.iterdir()) == [out]
    for entry in first.entries:
        times = [us for _, us in entry.candidates]
        assert times == sorted(times)
        assert entry.pdl == 1
        assert all(config.num_warps != 16 for config, _ in entry.candidates)


@pytest.mark.usefixtures("fake_gpu")
def test_the_table_of_another_gpu_is_refused(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "rounding", "--arch", "sm_80", "--out", str(tmp_path / "t.json")]) == 2
    assert "--arch: expected the local GPU's, sm_90, got sm_80. Run it on a sm_80." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kernel", ["norm", "gate"])
def test_a_wrong_result_is_rejected(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = ActivationProblem(2, 64)
    # Few numbers round by chance better or worse, so these are always the same.
    random = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(size, generator=random) for size in ((2, 128 if kernel == "gate" else 64), (64,)))
    reference = (
        gate_quantize_reference(x, None, "silu")
        if kernel == "gate"
        else rms_norm_quantize_reference(x, None, weight, 1e-6, 0.0, True)
    )
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    results = {"right": reference, "wrong": (*reference[:-2], reference[-2] * 1.5, reference[-1])}
    for name, result in results.items():
        monkeypatch.setattr(tune, "call_kernel", lambda *_, result=result: result)
        reason = tune.check_config(kernel, problem, ActivationConfig(2, 1), x, weight, 0)
        assert (reason is None) == (name == "right")

    def fails(*_: Any) -> None:
        raise RuntimeError("out of resources")

    monkeypatch.setattr(tune, "call_kernel", fails)
    reason = tune.check_config(kernel, problem, ActivationConfig(2, 1), x, weight, 0)
    assert reason == "RuntimeError: out of resources"


def made_table(*entries: tuple[Any, int, int, int, float]) -> table.Table:
    """Kernel, m, k, warps, microseconds."""
    made = [
        table.Entry(kernel, ActivationProblem(m, k), ((ActivationConfig(8, warps), us),), 1)
        for kernel, m, k, warps, us in entries
    ]
    return table.Table("sm_90", {"gpu": "made up"}, tuple(made))


def test_the_nearest_shape_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_table(
        ("norm", 1, 1024, 2, 1.0), ("norm", 1, 8192, 4, 2.0), ("norm", 512, 8192, 1, 3.0), ("gate", 1, 4096, 8, 1.5),
        ("quantize", 1, 1024, 1, 1.25), ("quantize", 1, 8192, 1, 1.75),
    )  # fmt: skip
    monkeypatch.setattr(table, "load", lambda arch: made)
    found = choose_norm(ActivationProblem(1, 5376), DEVICE)
    # The tile is as large as the row, or as the registers of four warps allow.
    assert (found.config, found.source) == (
        ActivationConfig(128, 4), "measured on made up, nearest shape M 1 K 8192"
    )  # fmt: skip
    assert choose_norm(ActivationProblem(1, 1024), DEVICE).config == ActivationConfig(32, 2)
    assert choose_norm(ActivationProblem(300, 4096), DEVICE).config.num_warps == 1
    assert choose_gate(ActivationProblem(1, 512), DEVICE).config == ActivationConfig(8, 8)
    assert quantize_us(ActivationProblem(1, 2048), DEVICE) == 1.25
    assert quantize_us(ActivationProblem(1, 21504), DEVICE) == 1.75


def test_without_a_table_the_model_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "load", lambda arch: None)
    problem = ActivationProblem(1, 4096)
    found = choose_norm(problem, DEVICE)
    assert found.config == norm_candidates(problem, DEVICE)[0]
    assert found.source == "the model, since there is no table for sm_90"
    assert choose_gate(problem, DEVICE).source == found.source
    assert quantize_us(problem, DEVICE) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "expected format 1, got 9"),
        (
            {"columns": {"norm": ["blocks"]}},
            r"expected the columns of norm to be \['blocks', 'num_warps'\], got \['blocks'\]",
        ),
        ({"columns": {}}, "'norm'"),
        ({"entries": [{}]}, "'kernel'"),
    ],
)
def test_what_is_no_table_is_refused(change: dict[str, Any], message: str) -> None:
    value = json.loads(table.to_json(made_table(("norm", 1, 64, 1, 1.0)))) | change
    with pytest.raises(KernelArgumentError, match=f"here: expected a table that .*{message}.* Run the tuner again"):
        table.from_json(json.dumps(value), "here")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kernel": "x"}, "'x'"), ({"candidates": []}, "no candidates")],
)
def test_an_entry_that_is_none_is_refused(change: dict[str, Any], message: str) -> None:
    value = json.loads(table.to_json(made_table(("norm", 1, 64, 1, 1.0))))
    value["entries"][0] |= change
    with pytest.raises(KernelArgumentError, match=message):
        table.from_json(json.dumps(value), "here")

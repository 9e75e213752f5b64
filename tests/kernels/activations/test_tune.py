"""The tuner of activations and the choice from its table, with times that are made up."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch

from etcuda.errors import KernelArgumentError
from etcuda.kernels.activations.choose import table, tune
from etcuda.kernels.activations.choose.configs import ActivationConfig, norm_candidates
from etcuda.kernels.activations.choose.select import choose_gate, choose_norm, quantize_us
from etcuda.kernels.activations.choose.tune import TUNING, ActivationTuning
from etcuda.kernels.activations.problem import ActivationProblem
from etcuda.kernels.activations.reference import gate_quantize_reference, rms_norm_quantize_reference
from etcuda.kernels.common import tuner
from etcuda.kernels.common.tuner import TuneOptions, run
from etcuda.kernels.common.tuning import Job
from tests.kernels.common.fake_tuning import H200 as DEVICE
from tests.kernels.common.fake_tuning import fake_gpu

from_json, to_json = table.FORMAT.from_json, table.FORMAT.to_json


def time_us(kernel: str, problem: ActivationProblem, config: ActivationConfig) -> float:
    """Four warps are best, and time goes with K."""
    return 1 + abs(config.num_warps - 4) + problem.k / 1e4 + (kernel == "norm")


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    def reject(job: Any) -> str | None:
        return "too large" if job.config.num_warps == 16 else None

    return fake_gpu(monkeypatch, ActivationTuning, time_us, reject)


def test_a_whole_run_and_a_resumed_one(
    timed: list[tuple[int, int]], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "sm_90.json"
    assert run("activations", TuneOptions(arch="sm_90", out=out, budget_s=0.0)) == 0
    assert not from_json(out.read_text(), "out").entries
    assert run("activations", TuneOptions(arch="sm_90", out=out)) == 0
    first = from_json(out.read_text(), "out")
    assert [(entry.kernel, entry.problem) for entry in first.entries] == tune.problems()
    assert {calls for calls, _ in timed} == {64}
    assert {repetitions for _, repetitions in timed} == {3, 9}
    assert run("activations", TuneOptions(arch="sm_90", out=out, resume=out)) == 0
    again = from_json(out.read_text(), "out")
    assert again == first
    assert from_json(to_json(again), "again") == again
    assert f"{len(first.entries)} of {len(tune.problems())} shapes" in capsys.readouterr().out
    assert list(out.parent.iterdir()) == [out]
    for entry in first.entries:
        times = [us for _, us in entry.candidates]
        assert times == sorted(times)
        assert entry.pdl == 1
        assert all(config.num_warps != 16 for config, _ in entry.candidates)


@pytest.mark.parametrize("kernel", ["norm", "gate"])
def test_a_wrong_result_is_rejected(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = ActivationProblem(2, 64)
    # By chance the quantisation of few numbers is better or worse, so these are always the same.
    random = torch.Generator().manual_seed(0)
    x, weights = (torch.randn(size, generator=random) for size in ((2, 128 if kernel == "gate" else 64), (1, 64)))
    reference = (
        gate_quantize_reference(x, None, "silu")
        if kernel == "gate"
        else rms_norm_quantize_reference(x, None, weights[0], 1e-6, 0.0, True)
    )
    monkeypatch.setattr(tune, "make_inputs", lambda *_: (x, weights))
    job = Job(kernel, problem, ActivationConfig(2, 1))
    results = {"right": reference, "wrong": (*reference[:-2], reference[-2] * 1.5, reference[-1])}
    for name, result in results.items():
        monkeypatch.setattr(tune, "call_kernel", lambda *_, result=result: result)
        assert (tuner.check(TUNING, job) is None) == (name == "right")

    def fails(*_: Any) -> None:
        raise RuntimeError("out of resources")

    monkeypatch.setattr(tune, "call_kernel", fails)
    assert tuner.check(TUNING, job) == "RuntimeError: out of resources"


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
    value = json.loads(to_json(made_table(("norm", 1, 64, 1, 1.0)))) | change
    with pytest.raises(KernelArgumentError, match=f"here: expected a table that .*{message}.* Run the tuner again"):
        from_json(json.dumps(value), "here")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kernel": "x"}, "'x'"), ({"candidates": []}, "no candidates")],
)
def test_an_entry_that_is_none_is_refused(change: dict[str, Any], message: str) -> None:
    value = json.loads(to_json(made_table(("norm", 1, 64, 1, 1.0))))
    value["entries"][0] |= change
    with pytest.raises(KernelArgumentError, match=message):
        from_json(json.dumps(value), "here")

"""The tuner's logic, with a clock and kernels that are made up; the real ones need a GPU."""

from __future__ import annotations

import concurrent.futures
import json
import pathlib
from typing import Any

import pytest
import torch

from etcuda.cli import main
from etcuda.errors import KernelArgumentError
from etcuda.kernels.attention import table, tune
from etcuda.kernels.attention.configs import SplitConfig, split_candidates, tiled_candidates
from etcuda.kernels.attention.problem import AttentionProblem
from etcuda.kernels.attention.select import choose_split, choose_tiled
from etcuda.kernels.attention.shapes import DECODE_LENGTHS, GEMMA, split_problems, tiled_problems
from etcuda.kernels.common.timing import Times


class FakeTimer:
    """A call takes longer the further its configuration is from 7 parts of 32 keys."""

    last: Any = None

    def graph_us(self, call: Any, calls: int, repetitions: int, hot: bool = False) -> Times:
        assert calls >= 2
        assert repetitions >= 3
        call(1)
        config = FakeTimer.last
        time = 1 + abs(getattr(config, "num_splits", 7) - 7) + abs(config.block_n - 32) + config.num_stages / 10
        return Times(time, time, 0.0)


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def call_kernel(kernel: str, problem: AttentionProblem, config: Any, *_tensors: Any) -> None:
        FakeTimer.last = config

    def check(job: Any) -> str | None:
        return "too large" if job[2].num_stages == 3 else None

    device = tune.LocalDevice("sm_90", 132, 227 << 10, 60 << 20)
    monkeypatch.setattr(tune.LocalDevice, "current", lambda: device)
    monkeypatch.setattr(tune, "call_kernel", call_kernel)
    monkeypatch.setattr(tune, "check_config", check)
    monkeypatch.setattr(tune, "Timer", FakeTimer)
    monkeypatch.setattr(tune, "make_inputs", lambda problem, sets=1: (None, [None] * sets, [None] * sets))
    monkeypatch.setattr(tune, "environment", lambda device: {"gpu": "made up"})
    threads = lambda jobs, mp_context: concurrent.futures.ThreadPoolExecutor(jobs)  # noqa: E731
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", threads)


@pytest.mark.usefixtures("fake_gpu")
def test_a_whole_run_and_a_resumed_one(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sm_90.json"
    arguments = ["tune", "attention", "--arch", "sm_90", "--out", str(out)]
    assert main([*arguments, "--only", "tiled"]) == 0
    tiled = table.from_json(out.read_text(), "out")
    assert {e.kernel for e in tiled.entries} == {"tiled"}
    assert main([*arguments, "--resume", str(out)]) == 0
    both = table.from_json(out.read_text(), "out")
    assert len(both.entries) == len(split_problems()) + len(tiled_problems())
    assert table.from_json(table.to_json(both), "again") == both
    assert f"{len(both.entries)} of {len(both.entries)} shapes" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [out]
    for entry in both.entries:
        times = [us for _, us in entry.candidates]
        assert times == sorted(times)
        assert all(config.num_stages != 3 for config, _ in entry.candidates)
    gemma = next(e for e in both.of("split") if e.problem == GEMMA.problem(1, 1, 4096))
    assert isinstance(gemma.best, SplitConfig)
    assert gemma.best.block_n == 32
    assert len({c.chunk_d for c, _ in gemma.candidates if isinstance(c, SplitConfig)}) > 1


@pytest.mark.usefixtures("fake_gpu")
def test_a_run_without_time_writes_what_it_has(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "sm_90.json"
    assert main(["tune", "attention", "--arch", "sm_90", "--out", str(out), "--budget-s", "0"]) == 0
    assert table.from_json(out.read_text(), "out").entries == ()


@pytest.mark.usefixtures("fake_gpu")
def test_another_architecture(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "attention", "--arch", "sm_80", "--out", str(tmp_path / "x.json")]) == 2
    assert "--arch: expected the local GPU's, sm_90, got sm_80" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "attention", "--arch", "sm_90", "--out", str(tmp_path / "x.json")]) == 2
    assert "expected an NVIDIA GPU, found none" in capsys.readouterr().err


def test_the_most_important_shapes_come_first() -> None:
    first = [(family.name, problem.l_kv) for family, problem in split_problems()[:36]]
    assert first == [(name, length) for name in ("gemma", "qwen", "d128") for length in DECODE_LENGTHS]
    assert all(problem.batch == 1 and problem.l_q == 1 for _, problem in split_problems()[:36])
    assert len(set(split_problems())) == len(split_problems())
    assert len(set(tiled_problems())) == len(tiled_problems())


@pytest.mark.parametrize("shared", [99 << 10, 163 << 10, 227 << 10])
def test_candidates_fit_the_shared_memory(shared: int) -> None:
    device = tune.LocalDevice("sm_89", 100, shared, 48 << 20)
    for _, problem in split_problems():
        candidates = split_candidates(problem, device)
        assert candidates
        assert len(set(candidates)) == len(candidates)
        for split in candidates:
            assert 1 <= split.num_splits <= -(-problem.l_kv // split.block_n)
            assert (2 * (split.num_stages - 1) * split.block_n + split.block_m) * problem.block_d * 2 <= shared
    for _, problem in tiled_problems():
        for tiled in tiled_candidates(problem, device):
            assert (2 * tiled.num_stages * tiled.block_n + tiled.block_m) * problem.block_d * 2 <= shared


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 7}, "expected format 1, got 7"),
        ({"columns": {"split": ["a"], "tiled": []}}, "expected the columns of split to be"),
        ({"entries": [{"kernel": "split"}]}, "'batch'"),
        ({"entries": None}, "NoneType"),
    ],
)
def test_what_is_no_table(change: dict[str, Any], message: str) -> None:
    good = json.loads(table.to_json(table.Table("sm_90", {}, ())))
    with pytest.raises(KernelArgumentError, match=r"there: expected a table that .*tune attention") as caught:
        table.from_json(json.dumps(good | change), "there")
    assert message in str(caught.value)
    with pytest.raises(KernelArgumentError, match="Run the tuner again"):
        table.from_json("{", "there")


@pytest.mark.parametrize("path", sorted(table.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_export_picks_the_best_of_what_was_measured(path: pathlib.Path) -> None:
    measured = table.load(path.stem)
    assert measured is not None
    assert measured.arch == path.stem
    assert {"gpu", "torch", "triton", "num_sms"} <= measured.environment.keys()
    device = tune.LocalDevice(measured.arch, int(measured.environment["num_sms"]), 1 << 30, 60 << 20)
    for entry in measured.entries:
        pick = choose_split if entry.kernel == "split" else choose_tiled
        times = dict(entry.candidates)
        assert times[pick(entry.problem, device).config] <= 1.03 * entry.us

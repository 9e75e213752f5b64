"""The tuner of attention and the choice from its table, with times that are made up; the real ones need a GPU."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import pytest

from etcuda.errors import KernelArgumentError
from etcuda.kernels.attention import table, tune
from etcuda.kernels.attention.configs import SplitConfig, split_candidates, tiled_candidates
from etcuda.kernels.attention.hopper.decode import ClusterConfig, leaves_room
from etcuda.kernels.attention.problem import AttentionProblem
from etcuda.kernels.attention.select import ONE_KERNEL_US, choose_cluster, choose_split, choose_tiled
from etcuda.kernels.attention.shapes import DECODE_LENGTHS, GEMMA, cluster_problems, split_problems, tiled_problems
from etcuda.kernels.attention.tune import AttentionTuning
from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.common.tuner import TuneOptions, run
from tests.kernels.common.fake_tuning import H200, fake_gpu

from_json, to_json = table.FORMAT.from_json, table.FORMAT.to_json


def time_us(kernel: str, problem: AttentionProblem, config: Any) -> float:
    """A call takes longer the further its configuration is from 7 splits of 32 keys."""
    if isinstance(config, ClusterConfig):
        return config.threads / 10 + config.unroll
    return 1 + abs(getattr(config, "num_splits", 7) - 7) + abs(config.block_n - 32) + config.num_stages / 10


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    def reject(job: Any) -> str | None:
        return "too large" if getattr(job.config, "num_stages", 0) == 3 else None

    return fake_gpu(monkeypatch, AttentionTuning, time_us, reject)


def test_a_whole_run_and_a_resumed_one(
    timed: list[tuple[int, int]], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sm_90.json"
    assert run("attention", TuneOptions(arch="sm_90", out=out, only="tiled")) == 0
    tiled = from_json(out.read_text(), "out")
    assert {e.kernel for e in tiled.entries} == {"tiled"}
    assert run("attention", TuneOptions(arch="sm_90", out=out, resume=out)) == 0
    both = from_json(out.read_text(), "out")
    assert len(both.entries) == len(split_problems()) + len(tiled_problems()) + len(cluster_problems())
    assert from_json(to_json(both), "again") == both
    assert all(calls >= 2 and repetitions >= 3 for calls, repetitions in timed)
    assert f"{len(both.entries)} of {len(both.entries)} shapes" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [out]
    for entry in both.entries:
        times = [us for _, us in entry.candidates]
        assert times == sorted(times)
        assert all(getattr(config, "num_stages", 0) != 3 for config, _ in entry.candidates)
    gemma = next(e for e in both.of("split") if e.problem == GEMMA.problem(1, 1, 4096))
    assert isinstance(gemma.best, SplitConfig)
    assert gemma.best.block_n == 32
    assert len({c.chunk_d for c, _ in gemma.candidates if isinstance(c, SplitConfig)}) > 1


def test_lengths_batches_and_splits_do_not_change_what_is_compiled() -> None:
    problem = GEMMA.problem(8, 1, 4096)
    first, *_ = split_candidates(problem, H200)
    short = GEMMA.problem(1, 1, 64)
    assert tune.TUNING.job("split", problem, first) == tune.TUNING.job(
        "split", short, dataclasses.replace(first, num_splits=2)
    )
    assert tune.TUNING.job("split", problem, first) != tune.TUNING.job("split", GEMMA.problem(1, 4, 64), first)
    tiled, *_ = tiled_candidates(problem, H200)
    other = dataclasses.replace(tiled, one_loop=1 - tiled.one_loop)
    assert tune.TUNING.job("tiled", problem, tiled) != tune.TUNING.job("tiled", problem, other)
    # Every reduction that a variant of a candidate needs is compiled, whatever its number of splits is.
    jobs = list(tune.TUNING.variant_jobs("split", problem, H200))
    reductions = {(job.config.block_s, job.config.chunk_d) for job in jobs if isinstance(job.config, SplitConfig)}
    for config in split_candidates(problem, H200):
        for variant in tune.TUNING.variants(problem, config):
            assert isinstance(variant, SplitConfig)
            assert variant.num_splits in (1, *range(129, 1 << 20)) or (variant.block_s, variant.chunk_d) in reductions
    assert not list(tune.TUNING.variant_jobs("tiled", problem, H200))


def test_the_most_important_shapes_come_first() -> None:
    first = [(family.name, problem.l_kv) for family, problem in split_problems()[:36]]
    assert first == [(name, length) for name in ("gemma", "qwen", "d128") for length in DECODE_LENGTHS]
    assert all(problem.batch == 1 and problem.l_q == 1 for _, problem in split_problems()[:36])
    assert len(set(split_problems())) == len(split_problems())
    assert len(set(tiled_problems())) == len(tiled_problems())


@pytest.mark.parametrize("shared", [99 << 10, 163 << 10, 227 << 10])
def test_candidates_fit_the_shared_memory(shared: int) -> None:
    device = LocalDevice("sm_89", 100, shared, 48 << 20)
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
    good = json.loads(to_json(table.Table("sm_90", {}, ())))
    with pytest.raises(KernelArgumentError, match=r"there: expected a table that .*tune attention") as caught:
        from_json(json.dumps(good | change), "there")
    assert message in str(caught.value)
    with pytest.raises(KernelArgumentError, match="Run the tuner again"):
        from_json("{", "there")


@pytest.mark.parametrize("path", sorted(table.FORMAT.folder.glob("*.json")), ids=lambda path: path.stem)
def test_export_picks_the_best_of_what_was_measured(path: pathlib.Path) -> None:
    measured = table.load(path.stem)
    assert measured is not None
    assert measured.arch == path.stem
    assert {"gpu", "torch", "triton", "num_sms"} <= measured.environment.keys()
    device = LocalDevice(measured.arch, int(measured.environment["num_sms"]), 1 << 30, 60 << 20)
    split = {entry.problem: entry.us for entry in measured.of("split")}
    for entry in measured.entries:
        times = dict(entry.candidates)
        if entry.kernel == "cluster":
            rows, most = entry.problem.group, split[entry.problem] + ONE_KERNEL_US
            roomy = {c: us for c, us in times.items() if leaves_room(c, entry.problem.head_dim, rows) and us < most}
            found = choose_cluster(entry.problem, device)
            assert (found is not None) == bool(roomy)
            assert found is None or roomy[found.config] == min(roomy.values())
            continue
        pick = choose_split if entry.kernel == "split" else choose_tiled
        assert times[pick(entry.problem, device).config] <= 1.03 * entry.us

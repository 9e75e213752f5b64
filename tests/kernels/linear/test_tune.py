"""The tuner of int4 and int8 weights and the choice from its table, with times that are made up."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import pytest

from etcuda.errors import KernelArgumentError
from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.common.tuner import TuneOptions, run
from etcuda.kernels.linear.choose import select, table
from etcuda.kernels.linear.choose.configs import MatmulConfig, MatvecConfig, matmul_candidates, matvec_candidates
from etcuda.kernels.linear.choose.select import choose, choose_matmul, choose_matvec, matvec_limit
from etcuda.kernels.linear.choose.shapes import problems
from etcuda.kernels.linear.choose.tune import TUNINGS, LinearTuning
from etcuda.kernels.linear.problem import MAX_TOKENS, LinearProblem
from tests.kernels.common.fake_tuning import H200 as DEVICE
from tests.kernels.common.fake_tuning import fake_gpu
from tests.kernels.linear.test_measured import name

FORMAT = table.format_of("int4")


def time_us(kernel: str, problem: LinearProblem, config: Any) -> float:
    """Four warps are best, and four rows are where tensor cores become faster."""
    time = 1 + abs(config.num_warps - 4) + config.block_n / 1000
    return time + (problem.m if isinstance(config, MatvecConfig) else 3)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    def reject(job: Any) -> str | None:
        return "too large" if job.config.num_stages == 4 else None

    return fake_gpu(monkeypatch, LinearTuning, time_us, reject)


@pytest.mark.parametrize("name", ["int4", "int8"])
def test_a_whole_run_and_a_resumed_one(
    name: str, timed: list[tuple[int, int]], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "sm_90.json"
    table_format = table.format_of(name)
    assert run(name, TuneOptions(arch="sm_90", out=out)) == 0
    first = table_format.from_json(out.read_text(), "out")
    assert [(entry.kernel, entry.problem) for entry in first.entries] == problems(name)
    assert all(calls >= 2 and repetitions >= 3 for calls, repetitions in timed)
    assert run(name, TuneOptions(arch="sm_90", out=out, resume=out)) == 0
    again = table_format.from_json(out.read_text(), "out")
    assert again == first
    assert table_format.from_json(table_format.to_json(again), "again") == again
    assert f"{len(first.entries)} of {len(problems(name))} shapes" in capsys.readouterr().out
    assert list(out.parent.iterdir()) == [out]
    for entry in first.entries:
        times = [us for _, us in entry.candidates]
        assert times == sorted(times)
        assert all(config.num_stages != 4 for config, _ in entry.candidates)


def test_rows_of_the_weight_and_ctas_do_not_change_what_is_compiled() -> None:
    tuning, problem = TUNINGS["int4"], LinearProblem(64, 43008, 5376)
    matmul, *_ = matmul_candidates(problem, DEVICE)
    job = tuning.job("matmul", problem, matmul)
    for other in (dataclasses.replace(problem, n=4096), dataclasses.replace(problem, m=128)):
        assert tuning.job("matmul", other, dataclasses.replace(matmul, ctas_per_sm=4)) == job
    for other in (dataclasses.replace(problem, k=4096), dataclasses.replace(problem, m=100)):
        assert tuning.job("matmul", other, matmul) != job
    assert tuning.job("matmul", problem, dataclasses.replace(matmul, ctas_per_sm=0)) != job
    matvec, *_ = matvec_candidates(dataclasses.replace(problem, m=1), DEVICE)
    two, four = (tuning.job("matvec", dataclasses.replace(problem, m=m), matvec) for m in (2, 4))
    assert two != four


@pytest.mark.usefixtures("timed")
def test_the_choice_follows_the_table(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "sm_90.json"
    assert run("int4", TuneOptions(arch="sm_90", out=out)) == 0
    measured = FORMAT.from_json(out.read_text(), "out")
    monkeypatch.setattr(table, "load", lambda name, arch: measured if (name, arch) == ("int4", "sm_90") else None)
    problem = LinearProblem(1, 43008, 5376)
    # Eight rows were measured to be slower by integer products, and so were four; two were not.
    assert matvec_limit(problem, DEVICE) == 2
    kernels = [choose(dataclasses.replace(problem, m=m), DEVICE).kernel for m in (1, 2, 3, 8, 9, 500)]
    assert kernels == ["matvec", "matvec", "matmul", "matmul", "matmul", "matmul"]
    assert choose(dataclasses.replace(problem, activation_dtype="exact"), DEVICE).kernel == "matmul"
    assert "measured on made up, nearest shape M 1 N 43008 K 5376" in choose(problem, DEVICE).source
    # Of two measurements of a shape, the one that was launched alike.
    early = dataclasses.replace(measured.of("matvec")[3], pdl=0)
    early = dataclasses.replace(early, candidates=early.candidates[-1:])
    assert early.problem == problem
    both = dataclasses.replace(measured, entries=(*measured.entries, early))
    monkeypatch.setattr(table, "load", lambda name, arch: both if name == "int4" else None)
    assert choose(problem, DEVICE, pdl=0).config == early.best
    assert choose(problem, DEVICE).config == measured.of("matvec")[3].best != early.best
    few = choose_matvec(dataclasses.replace(problem, m=2, n=5376, k=21504), DEVICE)
    assert "nearest shape M 2" in few.source
    for k in (32, 96, 1504, 5376, 21504, 1 << 17):
        config = choose_matvec(dataclasses.replace(problem, k=k), DEVICE).config
        assert isinstance(config, MatvecConfig)
        assert not config.resident or config.blocks >= k // 32
        wide = choose_matvec(dataclasses.replace(problem, k=k, itemsize=4), DEVICE).config
        assert isinstance(wide, MatvecConfig)
        assert wide.quantized
    assert "the model" in choose(dataclasses.replace(problem, format_name="int8"), DEVICE).source


def test_without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    device = LocalDevice("sm_89", 128, 99 << 10)
    monkeypatch.setattr(table, "load", lambda name, arch: None)
    for m in (1, 8, 9, 4000):
        for k in (32, 4096, 21504):
            choice = choose(LinearProblem(m, 4096, k), device)
            assert choice.kernel == ("matvec" if m <= MAX_TOKENS else "matmul")
            assert choice.source == "the model, since there is no table for sm_89"


@pytest.mark.parametrize("shared", [99 << 10, 163 << 10, 227 << 10])
def test_candidates(shared: int) -> None:
    device = LocalDevice("sm_89", 100, shared)
    for kernel, problem in problems("int4") + problems("int8"):
        found: list[Any] = []
        found += matvec_candidates(problem, device) if kernel == "matvec" else matmul_candidates(problem, device)
        assert found
        assert len(set(found)) == len(found)
        for config in found:
            if isinstance(config, MatmulConfig):
                words = config.block_n * config.blocks * problem.bits * 4
                assert config.num_stages * (words + 64 * config.blocks * config.block_m) <= shared
            else:
                assert config.resident == (config.ctas_per_sm > 0)
                assert not config.resident or config.blocks * 32 >= problem.k


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 7}, "expected format 1, got 7"),
        ({"columns": {"matvec": ["a"], "matmul": []}}, "expected the columns of matvec to be"),
        ({"entries": [{"kernel": "matvec"}]}, "'m'"),
        ({"entries": None}, "NoneType"),
    ],
)
def test_what_is_no_table(change: dict[str, Any], message: str) -> None:
    good = json.loads(FORMAT.to_json(table.Table("sm_90", {}, ())))
    with pytest.raises(KernelArgumentError, match=r"there: expected a table that .*tune int4") as caught:
        FORMAT.from_json(json.dumps(good | change), "there")
    assert message in str(caught.value)
    with pytest.raises(KernelArgumentError, match="Run the tuner again"):
        FORMAT.from_json("{", "there")


@pytest.mark.parametrize(
    "path",
    [path for name in ("int4", "int8") for path in sorted(table.format_of(name).folder.glob("*.json"))],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_tensor_cores_get_the_best_of_what_was_measured(path: pathlib.Path) -> None:
    measured = table.load(path.parent.name, path.stem)
    assert measured is not None
    assert measured.arch == path.stem
    assert {"gpu", "torch", "triton", "num_sms"} <= measured.environment.keys()
    device = LocalDevice(measured.arch, int(measured.environment["num_sms"]), 1 << 30)
    for entry in measured.entries:
        if entry.kernel == "matmul":
            assert choose_matmul(entry.problem, device, entry.pdl).config == entry.best
        if entry.problem.activation_dtype == "int8" and entry.problem.m <= MAX_TOKENS:
            limit = select.matvec_limit(entry.problem, device)
            assert 0 <= limit <= MAX_TOKENS

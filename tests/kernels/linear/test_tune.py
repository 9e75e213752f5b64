"""The tuner of int4 and int8 weights and the choice from its table, with a clock and kernels that are made up."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import pathlib
from typing import Any

import pytest
import torch

from etcuda.cli import main
from etcuda.errors import KernelArgumentError
from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.common.timing import Times
from etcuda.kernels.linear.choose import select, table, tune
from etcuda.kernels.linear.choose.configs import MatmulConfig, MatvecConfig, matmul_candidates, matvec_candidates
from etcuda.kernels.linear.choose.select import choose, choose_matmul, choose_matvec, matvec_limit
from etcuda.kernels.linear.choose.shapes import problems
from etcuda.kernels.linear.problem import MAX_TOKENS, LinearProblem

DEVICE = LocalDevice("sm_90", 132, 227 << 10)


class FakeTimer:
    """Four warps are best, and four rows are where tensor cores become faster."""

    last: Any = None

    def graph_us(self, call: Any, calls: int, repetitions: int, hot: bool = False) -> Times:
        assert calls >= 2
        assert repetitions >= 3
        call(1)
        problem, config = FakeTimer.last
        time = 1 + abs(config.num_warps - 4) + config.block_n / 1000
        time += problem.m if isinstance(config, MatvecConfig) else 3
        return Times(time, time, 0.0)


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def call_kernel(problem: LinearProblem, config: Any, *_rest: Any) -> None:
        FakeTimer.last = problem, config

    def check(job: Any) -> str | None:
        return "too large" if job[2].num_stages == 4 else None

    monkeypatch.setattr(LocalDevice, "current", lambda: DEVICE)
    monkeypatch.setattr(tune, "call_kernel", call_kernel)
    monkeypatch.setattr(tune, "check_config", check)
    monkeypatch.setattr(tune, "Timer", FakeTimer)
    monkeypatch.setattr(tune, "make_weight", lambda problem, rows: (None, None))
    monkeypatch.setattr(tune, "make_activations", lambda problem: None)
    monkeypatch.setattr(tune, "environment", lambda device: {"gpu": "made up", "num_sms": 132})
    threads = lambda jobs, mp_context: concurrent.futures.ThreadPoolExecutor(jobs)  # noqa: E731
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", threads)


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_whole_run_and_a_resumed_one(bits: int, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "sm_90.json"
    arguments = ["tune", f"int{bits}", "--arch", "sm_90", "--out", str(out)]
    assert main(arguments) == 0
    first = table.from_json(out.read_text(), "out")
    assert [(entry.kernel, entry.problem) for entry in first.entries] == problems(bits)
    assert main([*arguments, "--resume", str(out)]) == 0
    again = table.from_json(out.read_text(), "out")
    assert again == first
    assert table.from_json(table.to_json(again), "again") == again
    assert f"{len(first.entries)} of {len(problems(bits))} shapes" in capsys.readouterr().out
    assert list(out.parent.iterdir()) == [out]
    for entry in first.entries:
        times = [us for _, us in entry.candidates]
        assert times == sorted(times)
        assert all(config.num_stages != 4 for config, _ in entry.candidates)


@pytest.mark.usefixtures("fake_gpu")
def test_a_run_without_time_writes_what_it_has(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "sm_90.json"
    assert main(["tune", "int4", "--arch", "sm_90", "--out", str(out), "--budget-s", "0"]) == 0
    assert table.from_json(out.read_text(), "out").entries == ()


@pytest.mark.usefixtures("fake_gpu")
def test_another_architecture(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "int8", "--arch", "sm_80", "--out", str(tmp_path / "x.json")]) == 2
    assert "--arch: expected the local GPU's, sm_90, got sm_80" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "int4", "--arch", "sm_90", "--out", str(tmp_path / "x.json")]) == 2
    assert "expected an NVIDIA GPU, found none" in capsys.readouterr().err


@pytest.mark.usefixtures("fake_gpu")
def test_the_choice_follows_the_table(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "sm_90.json"
    assert main(["tune", "int4", "--arch", "sm_90", "--out", str(out)]) == 0
    measured = table.from_json(out.read_text(), "out")
    monkeypatch.setattr(table, "load", lambda bits, arch: measured if (bits, arch) == (4, "sm_90") else None)
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
    monkeypatch.setattr(table, "load", lambda bits, arch: both if bits == 4 else None)
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
        assert wide.rounded
    assert "the model" in choose(dataclasses.replace(problem, bits=8), DEVICE).source


def test_without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    device = LocalDevice("sm_89", 128, 99 << 10)
    monkeypatch.setattr(table, "load", lambda bits, arch: None)
    for m in (1, 8, 9, 4000):
        for k in (32, 4096, 21504):
            choice = choose(LinearProblem(m, 4096, k), device)
            assert choice.kernel == ("matvec" if m <= MAX_TOKENS else "matmul")
            assert choice.source == "the model, since there is no table for sm_89"


@pytest.mark.parametrize("shared", [99 << 10, 163 << 10, 227 << 10])
def test_candidates(shared: int) -> None:
    device = LocalDevice("sm_89", 100, shared)
    for kernel, problem in problems(4) + problems(8):
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
    good = json.loads(table.to_json(table.Table("sm_90", {}, ())))
    with pytest.raises(KernelArgumentError, match=r"there: expected a table that .*tune int4") as caught:
        table.from_json(json.dumps(good | change), "there")
    assert message in str(caught.value)
    with pytest.raises(KernelArgumentError, match="Run the tuner again"):
        table.from_json("{", "there")


@pytest.mark.parametrize(
    "path", sorted(table.FOLDER.glob("int*/*.json")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_tensor_cores_get_the_best_of_what_was_measured(path: pathlib.Path) -> None:
    bits = int(path.parent.name.removeprefix("int"))
    measured = table.load(bits, path.stem)
    assert measured is not None
    assert measured.arch == path.stem
    assert {"gpu", "torch", "triton", "num_sms"} <= measured.environment.keys()
    device = LocalDevice(measured.arch, int(measured.environment["num_sms"]), 1 << 30)
    for entry in measured.entries:
        if entry.kernel == "matmul":
            assert choose_matmul(entry.problem, device, entry.pdl).config == entry.best
        if entry.problem.activation == "int8" and entry.problem.m <= MAX_TOKENS:
            limit = select.matvec_limit(entry.problem, device)
            assert 0 <= limit <= MAX_TOKENS

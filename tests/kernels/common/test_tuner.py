"""The half of the tuner that families share, with a family on the CPU."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import pathlib
from typing import Any

import pytest
import torch

from etcuda.errors import KernelArgumentError, OptionError, SaveError
from etcuda.kernels.common import tuner
from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.common.tables import Table
from etcuda.kernels.common.timing import Times
from etcuda.kernels.common.tuner import TuneOptions, families, run
from etcuda.kernels.common.tuning import Job
from tests.kernels.common.fake_tuning import H200
from tests.kernels.common.toy_family import TUNING, ToyConfig, ToyProblem

SMALL, LARGE = ToyProblem(4, 2), ToyProblem(8, 3)
FORMAT = TUNING.table_format


class FakeTimer:
    """Large chunks are fast, and lanes that are 4 faster still."""

    taken: list[tuple[int, int]]

    def graph_us(self, call: Any, calls: int, repetitions: int, hot: bool = False) -> Times:
        FakeTimer.taken.append((calls, repetitions))
        results = [call(index) for index in range(calls)]
        assert torch.equal(results[0], results[3])
        assert not torch.equal(results[0], results[1])
        config = Calls.last
        us = 10 / config.chunk - config.lanes / 8 + repetitions / 1000
        return Times(us, us, 0.0)


class Calls:
    last: ToyConfig


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = type(TUNING).call

    def call(self: Any, kernel: Any, problem: Any, config: Any, inputs: Any, index: int) -> Any:
        Calls.last = config
        return plain(self, kernel, problem, config, inputs, index)

    FakeTimer.taken = []
    monkeypatch.setattr(type(TUNING), "call", call)
    monkeypatch.setattr(LocalDevice, "current", lambda: H200)
    monkeypatch.setattr(tuner, "Timer", FakeTimer)
    monkeypatch.setattr(tuner, "_tunings", lambda: {"toy": TUNING})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "made up")


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    import concurrent.futures

    threads = lambda jobs, mp_context: concurrent.futures.ThreadPoolExecutor(jobs)  # noqa: E731
    monkeypatch.setattr(tuner, "ProcessPoolExecutor", threads)


def read(path: pathlib.Path) -> Table[Any, Any, Any]:
    return FORMAT.from_json(path.read_text(), str(path))


def test_every_family_is_found() -> None:
    assert families() == ("activations", "attention", "int4", "int8")
    for family, found in tuner._tunings().items():
        assert found.family == family
        listed = [each for group in found.problems() for each in group]
        assert {kernel for kernel, _ in listed} == set(found.kernels)
        assert len(set(listed)) == len(listed)
        for kernel, problem in listed:
            configs = list(found.candidates(kernel, problem, H200))
            assert configs, (kernel, problem)
            assert all(found.job(kernel, problem, config) for config in configs)
            num_sets = found.num_sets(problem)
            assert found.num_calls(problem, num_sets) >= num_sets >= 1
            assert found.describe(problem)


@pytest.mark.slow
@pytest.mark.usefixtures("toy")
def test_a_run_that_compiles_in_a_process_of_its_own(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "toy.json"
    assert run("toy", TuneOptions(out=out, jobs=1)) == 0
    table = read(out)
    assert table.arch == "sm_90"
    assert table.environment["timing"] == "made up"
    assert {"gpu", "num_sms", "torch", "triton", "cuda", "python", "date"} <= table.environment.keys()
    assert [(entry.kernel, entry.problem) for entry in table.entries] == [
        ("plain", SMALL), ("chunked", SMALL), ("chunked", LARGE)
    ]  # fmt: skip
    for entry in table.of("chunked"):
        # Chunks of 3 compute something else and those of 5 fail; variants of the best are measured too.
        assert [config for config, _ in entry.candidates] == [
            ToyConfig(4, 4), ToyConfig(4), ToyConfig(2, 4), ToyConfig(2), ToyConfig(1)
        ]  # fmt: skip
        assert entry.pdl == 1
    assert table.of("plain")[0].best == ToyConfig(1)
    # Six calls that take three sets of inputs in turn; the best four once more, longer.
    repetitions = [[count for count, _ in group] for _, group in itertools.groupby(FakeTimer.taken, lambda t: t[1])]
    assert [len(group) for group in repetitions] == [1, 1, 5, 4, 5, 4]
    assert {calls for calls, _ in FakeTimer.taken} == {6}
    captured = capfd.readouterr()
    assert "3 of 3 shapes in" in captured.out
    assert "chunked rows 8 factor 3: 2.01 us ToyConfig(chunk=4, lanes=4)" in captured.out
    assert (
        "rejected ToyConfig(chunk=3, lanes=1) of chunked at ToyProblem(rows=4, factor=2): relative error 5.00e-01"
        in (captured.err)
    )
    assert "RuntimeError: out of resources: shared memory" in captured.err
    assert list(out.parent.iterdir()) == [out]


def test_the_reason_of_a_rejection() -> None:
    assert tuner.check(TUNING, Job("chunked", SMALL, ToyConfig(4))) is None
    assert tuner.check(TUNING, Job("chunked", SMALL, ToyConfig(3))) == "relative error 5.00e-01"
    reason = tuner.check(TUNING, Job("chunked", SMALL, ToyConfig(5)))
    assert reason is not None
    assert reason.startswith("RuntimeError: out of resources")
    assert len(reason) < 150


def test_a_result_that_is_no_number_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(TUNING), "result", lambda self, output: output * torch.nan)
    assert tuner.check(TUNING, Job("plain", SMALL, ToyConfig(1))) == "relative error nan"


@pytest.mark.usefixtures("toy", "in_threads")
def test_what_was_measured_is_kept(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "toy.json"
    assert run("toy", TuneOptions(out=out, only="plain")) == 0
    first = read(out)
    assert [entry.kernel for entry in first.entries] == ["plain"]
    assert "1 of 1 shapes" in capsys.readouterr().out
    # An entry that was launched otherwise stays, and does not count.
    serial = dataclasses.replace(first.entries[0], problem=LARGE, kernel="chunked", pdl=0)
    out.write_text(FORMAT.to_json(dataclasses.replace(first, entries=(*first.entries, serial))))
    taken = len(FakeTimer.taken)
    assert run("toy", TuneOptions(out=out, resume=out)) == 0
    resumed = read(out)
    assert resumed.entries[0] == first.entries[0]
    assert resumed.entries[-1] == serial
    assert [(entry.kernel, entry.pdl) for entry in resumed.entries] == [
        ("plain", 1), ("chunked", 1), ("chunked", 1), ("chunked", 0)
    ]  # fmt: skip
    assert "3 of 3 shapes" in capsys.readouterr().out
    assert len(FakeTimer.taken) > taken
    taken = len(FakeTimer.taken)
    assert run("toy", TuneOptions(out=tmp_path / "other.json", resume=out)) == 0
    assert len(FakeTimer.taken) == taken
    assert read(tmp_path / "other.json") == resumed


@pytest.mark.usefixtures("toy", "in_threads")
def test_a_run_without_time_writes_what_it_has(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "toy.json"
    assert run("toy", TuneOptions(out=out, budget_s=0.0)) == 0
    assert read(out).entries == ()
    assert not FakeTimer.taken


@pytest.mark.usefixtures("toy", "in_threads")
def test_the_table_is_written_now_and_then(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is a minute later, and the budget ends between the two groups."""
    written: list[int] = []
    plain = tuner.save
    monkeypatch.setattr(tuner, "save", lambda path, text: written.append(text.count('"kernel"')) or plain(path, text))
    clock = itertools.count(0, 60)
    monkeypatch.setattr(tuner.time, "monotonic", lambda: float(next(clock)))
    assert run("toy", TuneOptions(out=tmp_path / "toy.json", budget_s=450.0)) == 0
    assert written == [1, 2, 2]


@pytest.mark.usefixtures("toy", "in_threads")
def test_a_problem_that_no_configuration_fits(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tuner.check
    too_large = lambda tuning, job: "too large" if job.kernel == "plain" else plain(tuning, job)  # noqa: E731
    monkeypatch.setattr(tuner, "check", too_large)
    out = tmp_path / "toy.json"
    assert run("toy", TuneOptions(out=out)) == 0
    assert {entry.kernel for entry in read(out).entries} == {"chunked"}
    captured = capsys.readouterr()
    assert "plain rows 4 factor 2: no configuration fits" in captured.err
    assert "2 of 3 shapes" in captured.out


@pytest.mark.usefixtures("toy", "in_threads")
@pytest.mark.parametrize("case", ["a folder", "below a file"])
def test_a_table_that_cannot_be_written(case: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    out = {"a folder": tmp_path, "below a file": tmp_path / "file" / "toy.json"}[case]
    with pytest.raises(SaveError, match=r"tune: --out: expected a file that can be written, got .*Name another with"):
        run("toy", TuneOptions(out=out))
    assert not FakeTimer.taken, "it was measured first"


def test_a_disk_that_fills_up(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "toy.json"
    out.write_text("what was there")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    tuner.prepare(out)
    assert out.read_text() == "what was there"
    monkeypatch.setattr(tuner.os, "replace", full)
    with pytest.raises(SaveError, match=r"got .*toy\.json \(No space left on device\)"):
        tuner.save(out, "new")
    assert out.read_text() == "what was there"


@pytest.mark.usefixtures("toy", "in_threads")
def test_the_table_that_export_reads_is_not_overwritten(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etcuda.kernels.common.tables.FOLDER", tmp_path)
    path = FORMAT.path("sm_90")
    assert path == tmp_path / "toy" / "sm_90.json"
    assert run("toy", TuneOptions(only="plain")) == 0
    first = path.read_text()
    with pytest.raises(
        OptionError, match=r"--out: expected a file to write, for .*sm_90\.json holds a table.* --resume"
    ):
        run("toy", TuneOptions())
    assert path.read_text() == first
    assert run("toy", TuneOptions(resume=path)) == 0
    assert len(read(path).entries) == 3


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"arch": "sm_80"},
            KernelArgumentError,
            r"--arch: expected the local GPU's, sm_90, got sm_80\. Run it on a sm_80",
        ),
        ({"only": "tiled"}, OptionError, r"--only: expected a kernel of toy, 'plain' or 'chunked', got 'tiled'"),
        ({"resume": pathlib.Path("none.json")}, OptionError, r"--resume: expected a table .* got none\.json \(No such"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(error, match=message):
        run("toy", TuneOptions(out=tmp_path / "new" / "toy.json", **options))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"expected a table that `etcuda tune toy` wrote, got something else"),
        (
            FORMAT.to_json(Table("sm_80", {}, ())),
            r"expected a table of the local GPU's architecture, sm_90, got one of sm_80",
        ),
    ],
)
def test_a_bad_table_to_go_on_from(text: str, message: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "toy.json"
    path.write_text(text)
    with pytest.raises(KernelArgumentError, match=message):
        run("toy", TuneOptions(out=path, resume=path))
    assert path.read_text() == text


def test_an_unknown_family() -> None:
    with pytest.raises(OptionError, match=r"one of the kernel families activations, attention, int4, int8, got 'int5'"):
        run("int5", TuneOptions())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(tmp_path: pathlib.Path) -> None:
    with pytest.raises(KernelArgumentError, match="expected an NVIDIA GPU, found none"):
        run("attention", TuneOptions(arch="sm_90", out=tmp_path / "x.json"))
    assert not list(tmp_path.iterdir())

"""What the table of operators is made from: comparisons, records that go on where they were, cells."""

from __future__ import annotations

import pathlib

import pytest
import torch
from torch import Tensor, nn

from tests.suite.accuracy import expected_of, wrong_because
from tests.suite.batch import Batch, batch_inputs
from tests.suite.cases import SuiteCase, cases_of, functions_of, negated
from tests.suite.page import by_dtype, cell, make_page, read_columns, reasons
from tests.suite.records import CaseRecord, Records
from tests.suite.run import Task, batches, run_all


def case(model: nn.Module, *inputs: Tensor) -> SuiteCase:
    return SuiteCase("file", "test", 0, torch.float32, model.eval(), inputs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t * (1 + 1e-3), "off by"),
        (lambda t: t.double(), "expected torch.float32"),
        (lambda t: t[:1], "expected torch.float32 [2, 3]"),
        (lambda t: t.index_fill(0, torch.tensor([1]), float("nan")), "other NaNs"),
        (lambda t: t.index_fill(0, torch.tensor([1]), float("inf")), "other NaNs or infinities"),
    ],
)
def test_what_is_wrong_is_found(change: object, words: str) -> None:
    assert callable(change)
    eager, wide = expected_of(case(nn.Softmax(-1), torch.randn(2, 3)))
    assert wrong_because([t.clone() for t in eager], eager, wide) == ""
    assert words in wrong_because([change(eager[0])], eager, wide)
    assert "expected 1 outputs, got 0" in wrong_because([], eager, wide)


def test_integers_are_equal_or_wrong() -> None:
    eager = [torch.tensor([1, 2, 3])]
    assert wrong_because([torch.tensor([1, 2, 4])], eager, eager) == "output 0: 1 of 3 integers differ"


def test_a_batch_gives_each_case_its_own_inputs() -> None:
    cases = [*cases_of("index_put", torch.float32)][:2] + [*cases_of("add", torch.float32)][:1]
    got = list(Batch(cases)(*batch_inputs(cases)))
    for each in cases:
        eager, wide = expected_of(each)
        assert wrong_because([got.pop(0) for _ in eager], eager, wide) == ""
    assert got == []


def test_a_negated_case_is_one_with_arithmetic() -> None:
    each = next(iter(cases_of("view", torch.float32)))
    assert torch.equal(negated(each).model(*each.inputs), -each.model(*each.inputs))


def test_a_case_that_writes_to_its_inputs_gets_copies() -> None:
    (each,) = [c for c in cases_of("elu", torch.float32) if c.test == "test_elu_f32_inplace"]
    before = each.inputs[0].clone()
    each.model(*each.inputs)
    assert torch.equal(each.inputs[0], before)


def test_every_test_of_a_file_is_found_and_what_is_left_out_says_why() -> None:
    skipped: dict[str, str] = {}
    tests = {each.test for each in cases_of("linear", torch.float32, skipped)}
    assert tests | {key.split("::")[1].split("#")[0] for key in skipped} == {
        name for name, *_ in functions_of("linear")
    }
    assert {reason.split(":")[0] for reason in skipped.values()} == {"PyTorch"}
    assert "test_abs_edge_cases" in {each.test for each in cases_of("abs", torch.float32)}


def test_batches_keep_long_cases_apart() -> None:
    keys = ["a::t#0", "a::t#1", "a::t#2", *(f"lstm::t#{i}" for i in range(5)), "b::t#0"]
    assert [len(group) for group in batches(keys, 24)] == [3, 4, 1, 1]
    assert [len(group) for group in batches([*keys[:3], "torchvision::t#0", "torchvision::u#0"], 2)] == [2, 1, 1, 1]


def test_a_run_goes_on_and_tries_again_what_ended_the_process(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"a::t#{i}" for i in range(8)]
    records = Records(tmp_path / "r.json")
    records.end({keys[0]: CaseRecord(exported=True, ran=True)})
    records.begin(keys[1:5])
    tried: list[tuple[str, ...]] = []

    def try_task(task: Task) -> dict[str, CaseRecord]:
        tried.append(task.keys)
        assert Records(records.path).begun == list(task.keys)
        return {key: CaseRecord(exported=True, ran=True) for key in task.keys}

    monkeypatch.setattr("tests.suite.run.try_task", try_task)
    run_all(keys, Task((), "float32", "host"), Records(records.path))
    assert tried == [(key,) for key in keys[1:5]] + [tuple(keys[5:])]
    records.begin([keys[3]])
    run_all(keys[:1], Task((), "float32", "host"), (last := Records(records.path)))
    assert last.cases[keys[3]].verdict == "export failed"


def test_a_run_ends_when_its_time_is_up(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [f"a::t#{i}" for i in range(4)]
    now = [0.0]

    def try_task(task: Task) -> dict[str, CaseRecord]:
        now[0] += 10
        return {key: CaseRecord(exported=True, ran=True) for key in task.keys}

    monkeypatch.setattr("tests.suite.run.try_task", try_task)
    monkeypatch.setattr("tests.suite.run.time.monotonic", lambda: now[0])
    run_all(keys, Task((), "float32", "host"), (records := Records(tmp_path / "r.json")), size=1, until=15.0)
    assert list(records.cases) == keys[:2]
    assert Records(records.path).begun == []
    assert "2 of 4 cases have no record yet" in capsys.readouterr().out
    run_all(keys, Task((), "float32", "host"), records)
    assert list(records.cases) == keys


def test_a_gpu_has_columns_of_dtypes_too(tmp_path: pathlib.Path) -> None:
    for stem in ("host-float32", "host-bfloat16", "sm_90-run-float32", "sm_90-run-bfloat16"):
        Records(tmp_path / f"{stem}.json").save()
    targets, dtypes, _ = read_columns(tmp_path)
    assert list(targets) == ["host", "sm_90, run"]
    assert list(dtypes) == ["float32", "bfloat16", "sm_90, bfloat16"]


def test_records_are_read_as_they_were_written(tmp_path: pathlib.Path) -> None:
    records = Records(tmp_path / "r.json")
    left = CaseRecord(left=("aten.sort.default",), exported=True)
    plain = [CaseRecord(exported=True), CaseRecord(exported=True, ran=True, moves_only=True), CaseRecord(error="no")]
    records.end({f"a::t#{i}": each for i, each in enumerate([left, *plain])})
    assert Records(records.path).cases == records.cases


def test_cells_say_how_many_cases_are_what() -> None:
    right = CaseRecord(exported=True, ran=True)
    moved = CaseRecord(exported=True, ran=True, moves_only=True)
    left = CaseRecord(left=("aten.sort.default",), exported=True)
    failed = CaseRecord(error="RuntimeError: no")
    assert cell([right, right]) == "right"
    assert cell([moved]) == "right (moves only)"
    assert cell([right, left, failed]) == "1 right, 1 in part, 1 export failed"
    assert cell([None]) == ""


def test_the_page_names_what_is_not_right(tmp_path: pathlib.Path) -> None:
    records = Records(tmp_path / "r.json")
    right = CaseRecord(exported=True, ran=True)
    records.end({"a::t#0": right, "a::u#0": CaseRecord(left=("aten.sort.default",), exported=True)})
    columns = {"host": records}
    assert reasons(columns) == ["- host: in part: left to ExecuTorch: aten.sort.default: `a::u`"]
    assert by_dtype({"float32": records})[-1] == "| a | 1/1/1 of 2 |"
    page = make_page(columns, {"float32": records}, {}, ["a::t#0", "b::t#0", "b::t#1"])
    assert "- host: no record yet of 2 cases: b 2" in page
    assert "- host (torch ?): 2 cases of 2 tests: 1 right, 1 in part" in page
